//! What the conformance suite runs on: a subject is one platform, set up for one check.

pub mod checks;
pub mod local;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{Connection, Row};
use toygres_activities::platform::{InstanceSpec, Platform};
use toygres_models::{InstanceKey, PostgresVersion, StorageSize};

/// Every character that a URI, a shell, SQL or a configuration file could trip over.
pub const PASSWORD: &str = "p@:/?#%'\"\\ $🐘";
pub const READY: Duration = Duration::from_secs(60);

/// A platform under test.
pub trait Subject: Send + Sync {
    fn platform(&self) -> Arc<dyn Platform>;
    /// The version that the checks use.
    fn version(&self) -> PostgresVersion;
    /// How many servers run that this subject's platform started.
    fn servers(&self) -> usize;
    /// How many instances have anything left on the platform, by the platform's own means.
    fn leftovers(&self) -> Vec<String>;
}

pub fn key(name: &str) -> InstanceKey {
    InstanceKey::parse("conformance", name).unwrap()
}

pub fn spec(subject: &dyn Subject, name: &str) -> InstanceSpec {
    InstanceSpec {
        key: key(name),
        postgres_version: subject.version(),
        storage_size: StorageSize::default(),
        password: PASSWORD.to_owned().into(),
        use_load_balancer: false,
        dns_label: None,
    }
}

/// Logs in at the instance's endpoint, as any client would.
pub async fn connect(subject: &dyn Subject, name: &str, password: &str, mode: PgSslMode) -> Result<PgConnection, sqlx::Error> {
    let endpoint = subject.platform().endpoint(&key(name)).await.unwrap();
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&endpoint.uri.host)
        .port(endpoint.uri.port)
        .username("postgres")
        .password(password)
        .database("postgres")
        .ssl_mode(mode);
    if let Some(certificate) = &endpoint.uri.ca_certificate_path {
        options = options.ssl_root_cert(certificate);
    }
    PgConnection::connect_with(&options).await
}

/// Asks one question with the usual password over verified TLS; the first column of the answer.
pub async fn ask(subject: &dyn Subject, name: &str, question: &str) -> String {
    let mut connection = connect(subject, name, PASSWORD, PgSslMode::VerifyFull).await.unwrap();
    let row = sqlx::query(question).fetch_one(&mut connection).await.unwrap();
    let answer = row.get::<String, _>(0);
    connection.close().await.unwrap();
    answer
}

/// Waits for something to come true.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let begun = Instant::now();
    while !check().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn secret(text: &str) -> SecretString {
    text.to_owned().into()
}
