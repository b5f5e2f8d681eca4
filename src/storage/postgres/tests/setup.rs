//! Making a database for a relay, and looking at it.

use super::*;
use crate::{
    config::Time,
    storage::postgres::setup::{Plan, Setup, SetupError},
};

const TIMEOUT: Time = Time(Duration::from_secs(10));

/// The setup of a database for a role, by the role postgres.
fn setup(database: &TestDatabase, role: &str) -> Setup {
    let admin = Database { name: "postgres".to_owned(), ..database.used_by("postgres") };
    Setup::new((admin, None), (database.used_by(role), None), TIMEOUT)
}

fn purposes(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| step.purpose.as_str()).collect()
}

async fn open(database: &TestDatabase, role: &str) -> Result<PostgresStore, ConnectError> {
    let metrics = Metrics::new().expect("metrics").storage;
    PostgresStore::open(database.used_by(role), &Config::default(), Arc::default(), metrics).await
}

async fn report(database: &TestDatabase, role: &str) -> Report {
    let server = Server::of(&database.used_by(role), &Config::default().cluster).expect("a server");
    server.report("it".to_owned()).await.expect("is read")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_database_lets_the_relay_write_and_nothing_else() {
    let Some(database) = test_database().await else { return };
    let name = database.name().to_owned();
    database.drop().await;
    let setup = setup(&database, &format!("{name}_relay"));
    let missing = setup.plan_migration().await.err().map(|error| error.to_string());
    assert!(
        missing.is_some_and(|missing| missing.contains(&format!("role {name} does not exist")))
    );
    let plan = setup.plan().await.expect("a plan");
    assert_eq!(plan.steps.len(), 8, "{:?}", purposes(&plan));
    setup.carry_out(&plan, |_| {}).await.expect("is done");
    assert!(setup.plan().await.expect("a plan").steps.is_empty(), "it is complete");
    assert!(setup.plan_migration().await.expect("a plan").steps.is_empty());

    let role = format!("{name}_relay");
    let store = open(&database, &role).await.expect("opens");
    store.put(&key("a"), Bytes::from_static(b"x")).await.expect("is stored");
    let found = report(&database, &role).await;
    assert_eq!((found.format, found.problems), (Some(schema::FORMAT), Vec::<String>::new()));
    let versions: Vec<&str> = found.relays.iter().map(|relay| relay.version.as_str()).collect();
    assert_eq!(versions, [env!("CARGO_PKG_VERSION")]);
    let relay = database.client_as(&role).await.expect("may connect");
    for forbidden in [
        "create table tonk_relay.more ()",
        "drop table tonk_relay.chunk",
        "alter table tonk_relay.chunk add more text",
        "create trigger more after insert on tonk_relay.chunk execute function now()",
        "create schema more",
        "create temp table more ()",
    ] {
        let refused = relay.batch_execute(forbidden).await.expect_err(forbidden);
        let code = refused.code().map(tokio_postgres::error::SqlState::code);
        assert_eq!(code, Some("42501"), "{forbidden}: {refused:?}");
    }
    let stranger = format!("create role {name}_stranger login");
    relay.batch_execute(&stranger).await.expect_err("it makes no roles");
    let admin = database.client().await;
    admin.batch_execute(&stranger).await.expect("makes a role");
    database.client_as(&format!("{name}_stranger")).await.expect_err("may not connect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_relay_keeps_its_documents_and_gets_another_owner() {
    let Some(database) = test_database().await else { return };
    let role = format!("{}_relay", database.name());
    database.url_as(&role).await;
    let store = open(&database, &role).await.expect("makes the tables");
    store.put(&key("a"), Bytes::from_static(b"x")).await.expect("is stored");
    drop(store);
    let setup = setup(&database, &role);
    let plan = setup.plan().await.expect("a plan");
    assert!(purposes(&plan).contains(&&*format!("have {role}_owner own the tables")));
    setup.carry_out(&plan, |_| {}).await.expect("is done");
    assert!(setup.plan().await.expect("a plan").steps.is_empty(), "it is complete");
    let store = open(&database, &role).await.expect("opens");
    assert_eq!(store.load_document(DOCUMENT).await.expect("loads").chunks.len(), 1);
    let relay = database.client_as(&role).await.expect("may connect");
    relay.batch_execute("drop table tonk_relay.chunk").await.expect_err("is not the owner");
}

/// As at a provider, where nobody is a superuser.
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_with_few_rights_suffices() {
    let Some(database) = test_database().await else { return };
    let (role, admin) = (format!("{}_relay", database.name()), format!("{}_dba", database.name()));
    database.url_as(&role).await;
    drop(open(&database, &role).await.expect("makes the tables"));
    let create = format!("create role {admin} login createdb createrole");
    database.client().await.batch_execute(&create).await.expect("makes a role");
    let signed_in = Database { name: "postgres".to_owned(), ..database.used_by(&admin) };
    let setup = Setup::new((signed_in, None), (database.used_by(&role), None), TIMEOUT);
    let refused = setup.plan().await.err().map(|error| error.to_string()).unwrap_or_default();
    let grant = format!("grant \"{role}\" to \"{admin}\"");
    assert!(refused.ends_with(&grant), "{refused}");
    database.client().await.batch_execute(&grant).await.expect("grants");
    let plan = setup.plan().await.expect("a plan");
    assert!(plan.notes.iter().any(|note| note.contains("log_parameter_max_length = 0")));
    setup.carry_out(&plan, |_| {}).await.expect("is done");
    assert!(setup.plan().await.expect("a plan").steps.is_empty(), "it is complete");
    open(&database, &role).await.expect("opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_tables_of_others_is_left_alone() {
    let Some(database) = test_database().await else { return };
    database
        .client()
        .await
        .batch_execute("create table public.theirs ()")
        .await
        .expect("makes a table");
    let planned = setup(&database, "tonk").plan().await;
    assert!(matches!(planned, Err(SetupError::OfOthers(_))), "{:?}", planned.err());
}

/// Somebody else has made the database, and the relay has made its tables.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_nothing_to_migrate_where_the_relay_owns_its_tables() {
    let Some(database) = test_database().await else { return };
    let role = format!("{}_relay", database.name());
    database.url_as(&role).await;
    drop(open(&database, &role).await.expect("makes the tables"));
    assert!(setup(&database, &role).plan_migration().await.expect("a plan").steps.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_is_named_and_the_rest_can_be_done_later() {
    let Some(database) = test_database().await else { return };
    let role = format!("{}_relay", database.name());
    let setup = setup(&database, &role);
    let plan = setup.plan().await.expect("a plan");
    // Something else has the name of a table.
    let client = database.client().await;
    let taken = "create schema tonk_relay; create table tonk_relay.chunk ()";
    client.batch_execute(taken).await.expect("takes the name");
    let error = setup.carry_out(&plan, |_| {}).await.expect_err("fails").to_string();
    assert!(error.starts_with("cannot create the relay's tables: "), "{error}");
    client.batch_execute("drop schema tonk_relay cascade").await.expect("frees it");
    let plan = setup.plan().await.expect("a plan");
    assert_eq!(purposes(&plan).len(), 2, "{:?}", purposes(&plan));
    setup.carry_out(&plan, |_| {}).await.expect("is done");
    open(&database, &role).await.expect("opens");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_gets_no_role_that_may_do_everything() {
    let Some(database) = test_database().await else { return };
    let planned = setup(&database, "postgres").plan().await;
    assert!(matches!(planned, Err(SetupError::Powerful(_))), "{:?}", planned.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_amiss_is_reported() {
    let Some(database) = test_database().await else { return };
    let empty = report(&database, "postgres").await;
    assert!(empty.format == Some(0) && empty.relays.is_empty());
    drop(connect(&database).await.expect("makes the tables"));
    let client = database.client().await;
    let set = format!(
        "alter database {name} set synchronous_commit = off; \
         create role {name}_reader login; alter role {name}_reader connection limit 5; \
         update tonk_relay.meta set format = 9, oldest_writer = 9",
        name = database.name()
    );
    client.batch_execute(&set).await.expect("sets");
    let problems = report(&database, "postgres").await.problems.join("\n");
    assert!(problems.contains("synchronous_commit is off"), "{problems}");
    assert!(problems.contains("version 9, and this program knows 4"), "{problems}");
    let reader = format!("{}_reader", database.name());
    let problems = report(&database, &reader).await.problems.join("\n");
    assert!(problems.contains("allows 5 connections (the role"), "{problems}");
    assert!(problems.contains("lacks rights on the table tonk_relay."), "{problems}");
}
