//! What a server has already of what a relay needs.

use tokio_postgres::Client;

use crate::{
    config::Database,
    storage::postgres::{checks::OLDEST, error::ConnectError},
};

/// What the server has already.
pub(super) struct Found {
    pub(super) is_superuser: bool,
    pub(super) admin: String,
    pub(super) relay: Option<Role>,
    /// If there is a role of the name that an owner would get: whether the administrator has its
    /// rights.
    pub(super) new_owner: Option<bool>,
    /// The owner of the database, if it exists, and whether the administrator has its rights.
    pub(super) database: Option<(String, bool)>,
    pub(super) is_open_to_all: bool,
    pub(super) may_connect: bool,
    /// The server logs no values of the relay's statements.
    pub(super) logs_no_values: bool,
}

pub(super) struct Role {
    pub(super) is_superuser: bool,
    pub(super) may_sign_in: bool,
}

impl Found {
    /// Looks for the relay's database and role, and the role of its owner.
    pub(super) async fn look(
        client: &Client,
        relay: &Database,
        new_owner: &str,
    ) -> Result<Self, ConnectError> {
        let server = "select current_setting('server_version_num')::int, \
                      current_setting('server_version'), current_user::text, \
                      (select rolsuper from pg_roles where rolname = current_user), \
                      (select pg_has_role(oid, 'usage') from pg_roles where rolname = $1)";
        let row = client.query_one(server, &[&new_owner]).await?;
        if row.try_get::<_, i32>(0)? < OLDEST {
            return Err(ConnectError::TooOld(row.try_get(1)?));
        }
        let role = "select rolsuper, rolcanlogin from pg_roles where rolname = $1";
        let found = client.query_opt(role, &[&relay.user]).await?;
        let found = found.map(|row| {
            Ok::<_, ConnectError>(Role {
                is_superuser: row.try_get(0)?,
                may_sign_in: row.try_get(1)?,
            })
        });
        // 0 stands for everybody.
        let database = "select pg_get_userbyid(datdba)::text, pg_has_role(datdba, 'usage'), \
                        exists (select from \
                        aclexplode(coalesce(datacl, acldefault('d', datdba))) as acl \
                        where acl.grantee = 0 and acl.privilege_type = 'CONNECT'), \
                        exists (select from pg_roles where rolname = $2 \
                            and has_database_privilege(rolname, datname, 'connect')), \
                        exists (select from pg_db_role_setting join pg_roles \
                            on pg_roles.oid = setrole where setdatabase = pg_database.oid \
                            and rolname = $2 and 'log_parameter_max_length=0' = any(setconfig)) \
                        from pg_database where datname = $1";
        let database = client.query_opt(database, &[&relay.name, &relay.user]).await?;
        let (database, is_open_to_all, may_connect, logs_no_values) = match &database {
            None => (None, true, false, false),
            Some(row) => (
                Some((row.try_get(0)?, row.try_get(1)?)),
                row.try_get(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
            ),
        };
        Ok(Self {
            admin: row.try_get(2)?,
            is_superuser: row.try_get(3)?,
            new_owner: row.try_get(4)?,
            relay: found.transpose()?,
            database,
            is_open_to_all,
            may_connect,
            logs_no_values,
        })
    }
}
