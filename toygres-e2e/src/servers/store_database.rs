//! A PostgreSQL server that the tests of the metadata store share, and a database of its own for
//! each.

use std::sync::{Arc, Weak};

use anyhow::Result;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::types::Uuid;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;
use toygres_models::store::{ChangeRequested, MetadataUpdate, NewInstance, Operation, OperationRequested, Requested, StoreError};
use toygres_models::{InstanceKey, InstanceSpec, InstanceState, OperationKind, PlatformName, Store};

use crate::by_hand::{Programs, Server};
use crate::place::{required_or_skip, temporary_folder};

/// The server, as long as any test uses it.
static SERVER: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());

/// A database, and how it is reached.
#[derive(Debug)]
pub struct Database {
    /// How to connect to it.
    pub options: PgConnectOptions,
    /// The same as a URL.
    pub url: String,
    _server: Arc<Server>,
}

/// A database with the store's schema in it.
#[derive(Debug)]
pub struct StoreDatabase {
    /// The store.
    pub store: Store,
    /// How to connect to its database.
    pub options: PgConnectOptions,
    _server: Arc<Server>,
}

/// An empty database. `None` where the test can't run, and needn't.
///
/// # Errors
/// If it has to run, or the server can't be made.
pub async fn empty_database() -> Result<Option<Database>> {
    let Some(programs) = Programs::installed() else {
        required_or_skip("no PostgreSQL is installed on this machine")?;
        return Ok(None);
    };
    let mut shared = SERVER.lock().await;
    let server = match shared.upgrade() {
        Some(server) => server,
        None => {
            let mut server = Server::create(&programs, temporary_folder()?).await?;
            // A server has some thirty connections, and tests run side by side.
            let mut connection = server.options().connect().await?;
            sqlx::raw_sql("ALTER SYSTEM SET max_connections = 400").execute(&mut connection).await?;
            connection.close().await?;
            server.stop().await?;
            server.start().await?;
            Arc::new(server)
        }
    };
    *shared = Arc::downgrade(&server);
    drop(shared);
    let mut connection = server.options().connect().await?;
    let (name,): (String,) =
        sqlx::query_as("SELECT 'test_' || replace(gen_random_uuid()::text, '-', '')").fetch_one(&mut connection).await?;
    sqlx::raw_sql(&format!("CREATE DATABASE {name}")).execute(&mut connection).await?;
    connection.close().await?;
    Ok(Some(Database { options: server.options().database(&name), url: server.url_of(&name), _server: server }))
}

/// A store on a database of its own. `None` where the test can't run, and needn't.
///
/// # Errors
/// If it has to run, or the database can't be made.
pub async fn database() -> Result<Option<StoreDatabase>> {
    let Some(Database { options, _server, .. }) = empty_database().await? else { return Ok(None) };
    let store = Store::connect(options.clone(), 10).await?;
    Ok(Some(StoreDatabase { store, options, _server }))
}

/// An instance's key.
///
/// # Panics
/// If the names aren't legal.
#[must_use]
#[expect(clippy::unwrap_used, reason = "the names are the tests' own")]
pub fn key(namespace: &str, name: &str) -> InstanceKey {
    InstanceKey::parse(namespace, name).unwrap()
}

/// An instance that a test asks for.
///
/// # Panics
/// If the names aren't legal.
#[must_use]
#[expect(clippy::unwrap_used, reason = "the version is right")]
pub fn new_instance(namespace: &str, name: &str) -> NewInstance {
    NewInstance {
        id: Uuid::now_v7(),
        key: key(namespace, name),
        cluster_id: None,
        spec: InstanceSpec::new(PlatformName::Local, "15.1".parse().unwrap()),
        requested: Requested { cause: "a test".into(), ..Requested::by("test") },
    }
}

/// Asks for an instance's deletion.
///
/// # Errors
/// As [`Store::request_operation`].
pub async fn request_delete(store: &Store, key: &InstanceKey, requested: &Requested) -> Result<OperationRequested, StoreError> {
    store.request_operation(key, OperationKind::DELETE, json!({}), None, requested).await
}

/// Asks for a change of these fields of an instance's spec.
///
/// # Errors
/// As [`Store::change_instance`].
///
/// # Panics
/// If the fields aren't legal.
#[expect(clippy::unwrap_used, reason = "the fields are the tests' own")]
pub async fn request_change(
    store: &Store,
    key: &InstanceKey,
    fields: &Value,
    requested: &Requested,
) -> Result<ChangeRequested, StoreError> {
    let spec = store.instance(key).await?.spec.with(fields.as_object().unwrap()).unwrap();
    store.change_instance(key, None, &spec, false, requested).await
}

/// What is known of an instance that nobody asked for.
#[must_use]
pub fn update(instance_id: Uuid, name: &str, state: InstanceState) -> MetadataUpdate {
    MetadataUpdate {
        instance_id,
        instance_name: name.into(),
        platform: PlatformName::Local,
        state,
        health_status: None,
        ip_connection_string: None,
        dns_connection_string: None,
        health_check_orchestration_id: None,
        members: None,
        operation_id: None,
    }
}

/// What an operation writes down at its end.
#[must_use]
pub fn to_state(operation: &Operation, state: InstanceState) -> MetadataUpdate {
    MetadataUpdate { operation_id: Some(operation.id), ..update(operation.instance_id, &operation.instance_name, state) }
}
