//! Making a database ready for a relay: its roles, their rights and the tables.
//!
//! Two roles: one owns the database and the tables, and signs in nowhere; the relay signs in as the
//! other one, which may read and write the tables and not change them. So a relay that is taken
//! over cannot give others rights, or leave behind anything that runs in the database.

mod found;

use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    connection::Server,
    error::{ConnectError, explain},
    schema::{self, SCHEMA},
    setup::found::{Found, Role},
};
use crate::config::{Database, Time};

/// What the name of an owner ends with.
const OWNER: &str = "_owner";
/// The longest name of the relay's role, in bytes: PostgreSQL cuts names after 63 bytes.
const MAX_NAME: usize = 63 - OWNER.len();

/// What is missing until a relay can use its database.
pub struct Plan {
    /// In the order in which they are carried out.
    pub steps: Vec<Step>,
    /// What the administrator may not do, and somebody else should.
    pub notes: Vec<String>,
}

/// A step of a [`Plan`].
pub struct Step {
    /// What it is for.
    pub purpose: String,
    /// Its statements, as they may be shown: without passwords.
    pub shown: String,
    statements: String,
    place: Place,
}

/// Where a step is carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the server, by the administrator.
    Server,
    /// In the relay's database, by the administrator.
    Database,
}

/// What a database is set up from.
pub struct Setup {
    /// How the administrator signs in, and to which database.
    admin: Database,
    admin_password: Option<String>,
    /// The relay's database.
    relay: Database,
    relay_password: Option<String>,
    timeout: Time,
}

/// Why a database cannot be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SetupError {
    #[error("cannot use {database} as {user}: {problem}")]
    Connect { database: String, user: String, problem: String },
    #[error(
        "the role {0} is a superuser, or the one that sets up the database; name another one in \
         cluster.database"
    )]
    Powerful(String),
    #[error("the database or the role {0} does not exist; `tonk-relay cluster init` creates it")]
    Nothing(String),
    #[error(
        "the database {0} has tables of others, or is the server's own; name another one in \
         cluster.database, which is the relay's alone"
    )]
    OfOthers(String),
    #[error(
        "{admin} lacks the rights of {owner}, which owns the database {database}; give it these: \
         grant {} to {}",
        quote(owner),
        quote(admin)
    )]
    NotOwner { admin: String, owner: String, database: String },
    #[error("the name of the role {name} has {} bytes; expected at most {MAX_NAME}", name.len())]
    LongName { name: String },
    #[error(
        "the relay's tables have version {found}, and this program knows {known}; install the \
         version of tonk-relay that wrote them"
    )]
    Newer { found: i32, known: i32 },
    #[error("cannot {purpose}: {problem}")]
    Step { purpose: String, problem: String },
}

impl Setup {
    /// Sets up `relay`, signing in as `admin` does.
    pub fn new(
        admin: (Database, Option<String>),
        relay: (Database, Option<String>),
        timeout: Time,
    ) -> Self {
        let ((admin, admin_password), (relay, relay_password)) = (admin, relay);
        Self { admin, admin_password, relay, relay_password, timeout }
    }

    /// Looks at what is there.
    ///
    /// # Errors
    /// The server cannot be used, or the relay's role not be given few rights.
    pub async fn plan(&self) -> Result<Plan, SetupError> {
        let (client, _connection) = self.connect(self.admin.clone()).await?;
        let found = self.found(&client).await?;
        let name = &self.relay.user;
        if found.relay.as_ref().is_some_and(|role| role.is_superuser) || *name == found.admin {
            return Err(SetupError::Powerful(name.clone()));
        }
        if name.len() > MAX_NAME {
            return Err(SetupError::LongName { name: name.clone() });
        }
        let owner = found.database.as_ref().map(|(owner, _)| owner).filter(|owner| *owner != name);
        let owner = owner.cloned().unwrap_or_else(|| self.new_owner());
        let mut steps = self.steps_on_server(&found, &owner);
        steps.extend(match found.database {
            None => Self::steps_in_database(name, &owner, 0, &[], false),
            Some(_) => self.look_inside(&owner).await?,
        });
        let mut notes = Vec::new();
        if !found.is_superuser && !found.logs_no_values {
            notes.push(format!(
                "The server may log parts of documents. A superuser can prevent it: {}",
                self.log_no_values()
            ));
        }
        Ok(Plan { steps, notes })
    }

    /// Looks at what is missing in the tables of a database that exists.
    ///
    /// # Errors
    /// The server cannot be used, or the database does not exist.
    pub async fn plan_migration(&self) -> Result<Plan, SetupError> {
        let (client, _connection) = self.connect(self.admin.clone()).await?;
        let found = self.found(&client).await?;
        let Some((owner, _)) = found.database else {
            return Err(SetupError::Nothing(self.relay.name.clone()));
        };
        if found.relay.is_none() {
            return Err(SetupError::Nothing(self.relay.user.clone()));
        }
        Ok(Plan { steps: self.look_inside(&owner).await?, notes: Vec::new() })
    }

    /// Carries out a plan. Calls `done` after each step.
    ///
    /// # Errors
    /// A step fails. Those before it are done.
    pub async fn carry_out(&self, plan: &Plan, done: impl Fn(&Step)) -> Result<(), SetupError> {
        let (server, _connection) = self.connect(self.admin.clone()).await?;
        let mut inside: Option<(Client, JoinSet<()>)> = None;
        for step in &plan.steps {
            let client = match (step.place, &inside) {
                (Place::Server, _) => &server,
                (Place::Database, Some((client, _))) => client,
                (Place::Database, None) => &inside.insert(self.connect(self.inside()).await?).0,
            };
            // A database is made in seconds on a slow disk.
            let limit = 10 * self.timeout.0;
            let problem = match timeout(limit, client.batch_execute(&step.statements)).await {
                Ok(Ok(())) => {
                    done(step);
                    continue;
                }
                Ok(Err(error)) if error.as_db_error().is_some() => {
                    format!("{}; nothing of this step was done", explain(&error))
                }
                Ok(Err(error)) => {
                    format!("{}; perhaps it was done: run it again", explain(&error))
                }
                Err(_) => format!("no answer within {limit:?}; perhaps it was done: run it again"),
            };
            return Err(SetupError::Step { purpose: step.purpose.clone(), problem });
        }
        Ok(())
    }

    /// The relay's database, as the administrator.
    fn inside(&self) -> Database {
        Database { name: self.relay.name.clone(), ..self.admin.clone() }
    }

    fn new_owner(&self) -> String {
        format!("{}{OWNER}", self.relay.user)
    }

    async fn connect(&self, database: Database) -> Result<(Client, JoinSet<()>), SetupError> {
        let connecting = async {
            let server = Server::new(&database, self.admin_password.as_deref(), self.timeout.0)?;
            let mut connections = JoinSet::new();
            let broken = CancellationToken::new();
            let connecting = server.connect_one(&mut connections, &broken);
            let client = timeout(self.timeout.0, connecting)
                .await
                .map_err(|_| ConnectError::Timeout(self.timeout.0))??;
            Ok((client, connections))
        };
        connecting.await.map_err(|error| self.failed(&database, error))
    }

    fn failed(&self, database: &Database, source: ConnectError) -> SetupError {
        let problem = match source {
            ConnectError::Missing(problem) => {
                format!("{problem}; run it as root, or name a role that may with --admin")
            }
            other => other.to_string(),
        };
        let (database, user) = (database.to_string(), self.admin.user.clone());
        SetupError::Connect { database, user, problem }
    }

    /// The statement with which the server logs no values of the relay's statements.
    fn log_no_values(&self) -> String {
        let (role, database) = (quote(&self.relay.user), quote(&self.relay.name));
        format!("alter role {role} in database {database} set log_parameter_max_length = 0")
    }

    /// Looks at what the server has. The administrator must have the rights of the owner of a
    /// database that exists, to look into it.
    async fn found(&self, client: &Client) -> Result<Found, SetupError> {
        let found = Found::look(client, &self.relay, &self.new_owner()).await;
        let found = found.map_err(|error| self.failed(&self.admin, error))?;
        match &found.database {
            Some((owner, false)) => Err(SetupError::NotOwner {
                admin: found.admin.clone(),
                owner: owner.clone(),
                database: self.relay.name.clone(),
            }),
            _ => Ok(found),
        }
    }

    fn steps_on_server(&self, found: &Found, owner: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        let Database { user: name, name: database, .. } = &self.relay;
        let (role, owner_role, quoted) = (quote(name), quote(owner), quote(database));
        let mut add = |purpose: String, statements: String| {
            steps.push(Step::on_server(purpose, statements));
        };
        if owner == self.new_owner() && found.new_owner.is_none() {
            let purpose = format!("create the role {owner}, which owns the tables");
            add(purpose, format!("create role {owner_role} nologin"));
        }
        match &found.relay {
            None => {
                let purpose = format!("create the role {name}, as which the relay signs in");
                let create = format!("create role {role} login");
                match &self.relay_password {
                    None => add(purpose, create),
                    Some(password) => steps.push(Step {
                        purpose,
                        shown: format!("{create} password '***'"),
                        // What the server keeps of it: the password is in no log.
                        statements: format!(
                            "{create} password '{}'",
                            postgres_protocol::password::scram_sha_256(password.as_bytes())
                        ),
                        place: Place::Server,
                    }),
                }
            }
            Some(Role { may_sign_in: false, .. }) => {
                add(format!("let the role {name} sign in"), format!("alter role {role} login"));
            }
            Some(_) => {}
        }
        let mut add = |purpose: String, statements: String| {
            steps.push(Step::on_server(purpose, statements));
        };
        let present = found.database.as_ref();
        let is_new = present.is_none_or(|(present, _)| present != owner);
        let (admin, is_superuser) = (quote(&found.admin), found.is_superuser);
        if is_new && !is_superuser && found.new_owner != Some(true) {
            add(format!("act as {owner}"), format!("grant {owner_role} to {admin}"));
        }
        if found.database.is_none() {
            let create = format!(
                "create database {quoted} owner {owner_role} encoding 'UTF8' template template0"
            );
            add(format!("create the database {database}"), create);
        } else if is_new {
            let alter = format!("alter database {quoted} owner to {owner_role}");
            add(format!("have {owner} own the database {database}"), alter);
        }
        if found.is_open_to_all {
            let revoke = format!("revoke all on database {quoted} from public");
            add(format!("let nobody else into the database {database}"), revoke);
        }
        // The rights of everybody end above, and those of an owner.
        if found.is_open_to_all || is_new || !found.may_connect {
            let grant = format!("grant connect on database {quoted} to {role}");
            add(format!("let {name} into the database {database}"), grant);
        }
        if found.is_superuser && !found.logs_no_values {
            add("keep documents out of the server's log".to_owned(), self.log_no_values());
        }
        steps
    }

    /// Looks into the database.
    async fn look_inside(&self, owner: &str) -> Result<Vec<Step>, SetupError> {
        let database = self.inside();
        let (client, _connection) = self.connect(database.clone()).await?;
        let looking = async {
            let format = schema::format(&client).await?;
            let name = &self.relay.user;
            let others = "select current_database() = 'postgres' or exists (select from pg_class \
                          as class join pg_namespace as space on space.oid = class.relnamespace \
                          where space.nspname not in ($1, 'information_schema') \
                          and not starts_with(space.nspname, 'pg_') \
                          and class.relkind in ('r', 'p', 'v', 'm', 'f', 'S') \
                          and not exists (select from pg_depend where deptype = 'e' \
                              and classid = 'pg_class'::regclass and objid = class.oid))";
            let is_of_others: bool = client.query_one(others, &[&SCHEMA]).await?.try_get(0)?;
            let tables = "select class.relname::text from pg_class as class \
                          join pg_namespace as space on space.oid = class.relnamespace \
                          where space.nspname = $1 and class.relkind = 'r' \
                          and pg_get_userbyid(class.relowner) = $2";
            let owned = client.query(tables, &[&SCHEMA, name]).await?;
            let owned: Result<Vec<String>, _> = owned.iter().map(|row| row.try_get(0)).collect();
            // The owner is the relay's role if somebody else has made the database.
            let owned = if name == owner { Vec::new() } else { owned? };
            let role = "select exists (select from pg_roles where rolname = $1)";
            let is_granted = owned.is_empty()
                && client.query_one(role, &[name]).await?.try_get(0)?
                && schema::lacking_rights(&client, Some(name)).await?.is_none();
            Ok::<_, ConnectError>((format, owned, is_granted, is_of_others))
        };
        let (format, owned, is_granted, is_of_others) =
            looking.await.map_err(|error| self.failed(&database, error))?;
        if is_of_others {
            return Err(SetupError::OfOthers(self.relay.name.clone()));
        }
        if format > schema::FORMAT {
            return Err(SetupError::Newer { found: format, known: schema::FORMAT });
        }
        Ok(Self::steps_in_database(&self.relay.user, owner, format, &owned, is_granted))
    }

    /// The steps in a database whose tables have version `format`. Those in `owned` belong to the
    /// relay's own role.
    fn steps_in_database(
        name: &str,
        owner: &str,
        format: i32,
        owned: &[String],
        is_granted: bool,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        let (role, owner_role) = (quote(name), quote(owner));
        let missing = schema::steps_from(format);
        let mut add = |purpose: String, shown: String, statements: String| {
            steps.push(Step { purpose, shown, statements, place: Place::Database });
        };
        let grant = format!(
            "grant usage on schema {SCHEMA} to {role};\ngrant select, insert, update, delete \
             on all tables in schema {SCHEMA} to {role}"
        );
        let grant = |after: &str| format!("{after}set local role {owner_role};\n{grant}");
        if !owned.is_empty() {
            let mut alter = format!("alter schema {SCHEMA} owner to {owner_role};\n");
            for table in owned {
                alter.push_str(&format!("alter table {SCHEMA}.{table} owner to {owner_role};\n"));
            }
            // At once, because a relay may be running.
            let statements = grant(&alter);
            add(format!("have {owner} own the tables"), statements.clone(), statements);
        }
        let has_changed = missing.is_some();
        if let Some(missing) = missing {
            let purpose = match format {
                0 => "create the relay's tables".to_owned(),
                found => {
                    let needed = schema::FORMAT;
                    format!("bring the relay's tables from version {found} to {needed}")
                }
            };
            let shown = format!("in the schema {SCHEMA}");
            add(purpose, shown, format!("set local role {owner_role};\n{missing}"));
        }
        if has_changed || (!is_granted && owned.is_empty()) {
            let statements = grant("");
            let purpose = format!("let {name} read and write the tables");
            add(purpose, statements.clone(), statements);
        }
        steps
    }
}

impl Step {
    fn on_server(purpose: String, statements: String) -> Self {
        Self { purpose, shown: statements.clone(), statements, place: Place::Server }
    }
}

/// A name as an identifier.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
