//! `tonk-relay cluster init` and `migrate`: make a database ready for a relay.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use super::{AdminArguments, Configured, as_user};
use crate::{
    base::user::User,
    cli::{error::CliError, output::print, runtime::runtime},
    config::{Database, DatabaseHost, DatabaseUrl},
    storage::postgres::{
        self, ConnectError,
        setup::{Plan, Setup},
    },
};

/// The user and the role that a package of PostgreSQL makes, and the database of that role.
const ADMIN: &str = "postgres";

/// Makes the database, or only brings its tables to the version of this program.
pub(super) fn run(arguments: &AdminArguments, only_tables: bool) -> Result<(), CliError> {
    let configured = arguments.relay.read()?;
    let relay = configured.database.clone();
    let (admin, user) = administrator(arguments, &relay)?;
    let problem = |error: ConnectError| CliError::Problem(error.to_string());
    let file = arguments.admin_password_file.clone().unwrap_or_default();
    let admin_password = postgres::password(&file).map_err(problem)?;
    let password = postgres::password(&configured.cluster().password_file()).map_err(problem)?;
    let timeout = configured.cluster().timeout;
    let setup = Setup::new((admin.clone(), admin_password), (relay, password), timeout);
    let changed = as_user(user.as_ref(), Path::new(ADMIN), || {
        change(&setup, &admin, only_tables, arguments.yes)
    })?;
    changed?;
    check(&configured)
}

/// As whom, and as which user of this machine, the command signs in.
fn administrator(
    arguments: &AdminArguments,
    relay: &Database,
) -> Result<(Database, Option<User>), CliError> {
    if let Some(url) = &arguments.admin {
        let read = DatabaseUrl::from(url.as_str()).read();
        return match read {
            Ok(Some(admin)) if admin.host == relay.host && admin.port == relay.port => {
                let user = matches!(admin.host, DatabaseHost::Socket(_))
                    .then(|| User::find(&admin.user))
                    .flatten();
                Ok((admin, user))
            }
            Ok(Some(admin)) => Err(CliError::Problem(format!(
                "--admin names another server, {admin}; cluster.database is {relay}"
            ))),
            Ok(None) => Err(CliError::Problem("--admin is empty; expected a URL".to_owned())),
            Err(problem) => {
                let problem = problem.replace("cluster.password_file", "--admin-password-file");
                Err(CliError::Problem(format!("--admin {problem}")))
            }
        };
    }
    match &relay.host {
        DatabaseHost::Socket(_) => {
            let admin =
                Database { user: ADMIN.to_owned(), name: ADMIN.to_owned(), ..relay.clone() };
            Ok((admin, User::find(ADMIN)))
        }
        DatabaseHost::Name(host) => Err(CliError::Problem(format!(
            "expected --admin postgres://postgres@{host}/postgres, or another role that may create \
             roles and databases on {host}, with --admin-password-file"
        ))),
    }
}

/// Shows what will be done, and does it if that is wanted.
fn change(
    setup: &Setup,
    admin: &Database,
    only_tables: bool,
    is_wanted: bool,
) -> Result<(), CliError> {
    let problem = |error: postgres::setup::SetupError| CliError::Problem(error.to_string());
    let make_plan = async || {
        let planned = match only_tables {
            true => setup.plan_migration().await,
            false => setup.plan().await,
        };
        planned.map_err(problem)
    };
    runtime()?.block_on(async {
        let plan = make_plan().await?;
        plan.notes.iter().for_each(|note| eprintln!("{note}"));
        if plan.steps.is_empty() {
            print("The database has all of it already; nothing was changed.\n");
            return Ok(());
        }
        print(&describe(&plan, admin));
        if !is_wanted && !is_confirmed()? {
            return Err(CliError::Problem("nothing was changed".to_owned()));
        }
        let done = |step: &postgres::setup::Step| print(&format!("done: {}\n", step.purpose));
        setup.carry_out(&plan, done).await.map_err(problem)?;
        // The server only warns of a right that this role may not grant or take away.
        let left = make_plan().await?.steps;
        if left.is_empty() {
            return Ok(());
        }
        let left: Vec<&str> = left.iter().map(|step| step.purpose.as_str()).collect();
        Err(CliError::Problem(format!(
            "{} may not do this, and it had no effect: {}",
            admin.user,
            left.join("; ")
        )))
    })
}

fn describe(plan: &Plan, admin: &Database) -> String {
    let mut text = format!("As {}, on the server of {admin}:\n", admin.user);
    for step in &plan.steps {
        text.push_str(&format!("\n  {}\n", step.purpose));
        for line in step.shown.trim_end().lines() {
            text.push_str(&format!("      {line}\n"));
        }
    }
    text.push('\n');
    text
}

/// Asks for confirmation at the terminal.
fn is_confirmed() -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::Problem(
            "nothing was changed: standard input is not a terminal; --yes goes on without asking"
                .to_owned(),
        ));
    }
    eprint!("Do this? [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Checks that the relay itself can use the database.
fn check(configured: &Configured) -> Result<(), CliError> {
    let Configured { database, .. } = configured;
    let checked = configured.as_relay(|| postgres::check(database, configured.cluster()))?;
    match checked {
        Ok(()) => {
            print(&format!("The relay can use the database {database}.\n"));
            Ok(())
        }
        Err(error) => Err(CliError::Problem(format!(
            "the relay cannot use the database {database} as {}: {error}",
            database.user
        ))),
    }
}
