//! Making a database ready for a relay: its roles, their rights and the tables.
//!
//! Two roles: one owns the database and the tables, and signs in nowhere; the relay signs in as the
//! other one, which may read and write the tables and not change them. So a relay that is taken
//! over cannot give others rights, or leave behind anything that runs in the database.

use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{OLDEST, Server},
    error::ConnectError,
    schema::{self, SCHEMA},
};
use crate::config::{Database, Time};

/// What is missing until a relay can use its database.
pub struct Plan {
    /// In the order in which they are carried out.
    pub steps: Vec<Step>,
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
    #[error("cannot use {database} as {user}: {source}")]
    Connect { database: String, user: String, source: ConnectError },
    #[error(
        "the role {0} is a superuser, or the one that sets up the database; name another one in \
         cluster.database"
    )]
    Powerful(String),
    #[error("there is no database {0}; `tonk-relay cluster init` makes it")]
    NoDatabase(String),
    #[error(
        "the relay's tables have version {found}, and this program knows {known}; install the \
         version of tonk-relay that wrote them"
    )]
    Newer { found: i32, known: i32 },
    #[error("cannot {purpose}: {problem}; nothing of this step was done")]
    Step { purpose: String, problem: String },
}

/// What the server has already.
struct Found {
    is_superuser: bool,
    admin: String,
    relay: Option<Role>,
    /// Whether there is a role of the name that an owner would get.
    has_owner: bool,
    /// The owner of the database, if it exists.
    database: Option<String>,
    is_open_to_all: bool,
    may_connect: bool,
}

struct Role {
    is_superuser: bool,
    may_sign_in: bool,
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
        let found = self.look(&client).await.map_err(|error| self.failed(&self.admin, error))?;
        let name = &self.relay.user;
        if found.relay.as_ref().is_some_and(|role| role.is_superuser) || *name == found.admin {
            return Err(SetupError::Powerful(name.clone()));
        }
        let owner = found.database.clone().filter(|owner| owner != name);
        let owner = owner.unwrap_or_else(|| self.new_owner());
        let mut steps = self.steps_on_server(&found, &owner);
        steps.extend(match found.database {
            None => Self::steps_in_database(name, &owner, 0, &[], false),
            Some(_) => self.look_inside(&owner).await?,
        });
        Ok(Plan { steps })
    }

    /// Looks at what is missing in the tables of a database that exists.
    ///
    /// # Errors
    /// The server cannot be used, or there is no such database.
    pub async fn plan_migration(&self) -> Result<Plan, SetupError> {
        let (client, _connection) = self.connect(self.admin.clone()).await?;
        let found = self.look(&client).await.map_err(|error| self.failed(&self.admin, error))?;
        let Some(owner) = found.database else {
            return Err(SetupError::NoDatabase(self.relay.name.clone()));
        };
        Ok(Plan { steps: self.look_inside(&owner).await? })
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
            let problem =
                match timeout(10 * self.timeout.0, client.batch_execute(&step.statements)).await {
                    Ok(Ok(())) => {
                        done(step);
                        continue;
                    }
                    Ok(Err(error)) => super::error::explain(&error),
                    Err(_) => format!("the server did not answer within {:?}", 10 * self.timeout.0),
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
        format!("{}_owner", self.relay.user)
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
        SetupError::Connect {
            database: database.to_string(),
            user: self.admin.user.clone(),
            source,
        }
    }

    async fn look(&self, client: &Client) -> Result<Found, ConnectError> {
        let server = "select current_setting('server_version_num')::int, \
                      current_setting('server_version'), current_user::text, \
                      (select rolsuper from pg_roles where rolname = current_user), \
                      exists (select from pg_roles where rolname = $1)";
        let row = client.query_one(server, &[&self.new_owner()]).await?;
        if row.try_get::<_, i32>(0)? < OLDEST {
            return Err(ConnectError::TooOld(row.try_get(1)?));
        }
        let role = "select rolsuper, rolcanlogin from pg_roles where rolname = $1";
        let relay = client.query_opt(role, &[&self.relay.user]).await?;
        let relay = relay.map(|row| {
            Ok::<_, ConnectError>(Role {
                is_superuser: row.try_get(0)?,
                may_sign_in: row.try_get(1)?,
            })
        });
        // 0 stands for everybody.
        let database = "select pg_get_userbyid(datdba)::text, exists (select from \
                        aclexplode(coalesce(datacl, acldefault('d', datdba))) as acl \
                        where acl.grantee = 0 and acl.privilege_type = 'CONNECT'), \
                        exists (select from pg_roles where rolname = $2 \
                            and has_database_privilege(rolname, datname, 'connect')) \
                        from pg_database where datname = $1";
        let database = client.query_opt(database, &[&self.relay.name, &self.relay.user]).await?;
        let (owner, is_open_to_all, may_connect) = match &database {
            None => (None, true, false),
            Some(row) => (Some(row.try_get(0)?), row.try_get(1)?, row.try_get(2)?),
        };
        Ok(Found {
            admin: row.try_get(2)?,
            is_superuser: row.try_get(3)?,
            has_owner: row.try_get(4)?,
            relay: relay.transpose()?,
            database: owner,
            is_open_to_all,
            may_connect,
        })
    }

    fn steps_on_server(&self, found: &Found, owner: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        let Database { user: name, name: database, .. } = &self.relay;
        let (role, owner_role, quoted) = (quote(name), quote(owner), quote(database));
        let mut add = |purpose: String, statements: String| {
            steps.push(Step::on_server(purpose, statements));
        };
        if owner == self.new_owner() && !found.has_owner {
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
        let is_new = found.database.as_deref() != Some(owner);
        if is_new && !found.is_superuser {
            let admin = quote(&found.admin);
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
        if found.is_superuser && (found.database.is_none() || found.relay.is_none()) {
            let set =
                format!("alter role {role} in database {quoted} set log_parameter_max_length = 0");
            add("keep documents out of the server's log".to_owned(), set);
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
            let tables = "select class.relname::text from pg_class as class \
                          join pg_namespace as space on space.oid = class.relnamespace \
                          where space.nspname = $1 and class.relkind = 'r' \
                          and pg_get_userbyid(class.relowner) = $2";
            let owned = client.query(tables, &[&SCHEMA, name]).await?;
            let owned: Result<Vec<String>, _> = owned.iter().map(|row| row.try_get(0)).collect();
            let owned = owned?;
            let role = "select exists (select from pg_roles where rolname = $1)";
            let is_granted = owned.is_empty()
                && client.query_one(role, &[name]).await?.try_get(0)?
                && schema::lacking_rights(&client, Some(name)).await?.is_none();
            Ok::<_, ConnectError>((format, owned, is_granted))
        };
        let (format, owned, is_granted) =
            looking.await.map_err(|error| self.failed(&database, error))?;
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
        if !owned.is_empty() {
            let mut alter = format!("alter schema {SCHEMA} owner to {owner_role};\n");
            for table in owned {
                alter.push_str(&format!("alter table {SCHEMA}.{table} owner to {owner_role};\n"));
            }
            add(format!("have {owner} own the tables"), alter.clone(), alter);
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
        if has_changed || !is_granted {
            let grant = format!(
                "grant usage on schema {SCHEMA} to {role};\ngrant select, insert, update, delete \
                 on all tables in schema {SCHEMA} to {role}"
            );
            let statements = format!("set local role {owner_role};\n{grant}");
            add(format!("let {name} read and write the tables"), grant, statements);
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
