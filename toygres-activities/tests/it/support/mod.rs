//! What the conformance suite runs on: a subject is one platform, set up for one check.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

pub mod checks;
pub mod kubernetes;
pub mod local;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{Connection, Row};
use toygres_activities::platform::{Deployment, LogLine, LogStream, Platform};
use toygres_models::{InstanceKey, InstanceSpec, PlatformName, PostgresVersion, Power};

/// Every character that a URI, a shell, SQL or a configuration file could trip over.
pub const PASSWORD: &str = "p@:/?#%'\"\\ $";
/// How long an instance may take to be ready, and a wait may last: as a create gives it.
pub const READY: Duration = Duration::from_secs(300);

/// A platform under test.
#[async_trait::async_trait]
pub trait Subject: Send + Sync {
    fn platform(&self) -> Arc<dyn Platform>;
    /// The version that the checks use.
    fn version(&self) -> PostgresVersion;
    /// Waits until an instance that was made answers, on a platform that doesn't do so while making it.
    async fn settle(&self, _name: &str) {}
    /// Has an instance's server end at once, with no chance to tidy up.
    fn fell(&self, name: &str);
    /// Has every later start of an instance's server fail, by a setting that toygres doesn't manage.
    fn break_start(&self, name: &str);
    /// Removes a stopped instance's data, and all else that there is of it, by the platform's own means.
    fn lose(&self, name: &str);
    /// What toygres' restart on the same state would work with.
    async fn again(&self) -> Arc<dyn Platform>;
    /// How many servers run that this subject's platform started.
    fn servers(&self) -> usize;
    /// How many instances have anything left on the platform, by the platform's own means.
    fn leftovers(&self) -> Vec<String>;
}

pub fn key(name: &str) -> InstanceKey {
    InstanceKey::parse("conformance", name).unwrap()
}

/// A first deployment of an instance.
pub fn spec(subject: &dyn Subject, name: &str) -> Deployment {
    spec_of(subject.platform().name(), subject.version(), name)
}

pub fn spec_of(platform: PlatformName, postgres_version: PostgresVersion, name: &str) -> Deployment {
    Deployment {
        key: key(name),
        instance_id: None,
        spec: InstanceSpec::new(platform, postgres_version),
        password: PASSWORD.to_owned().into(),
        data_exists: false,
    }
}

/// A later deployment of the same, which is to run or not.
pub fn powered(subject: &dyn Subject, name: &str, power: Power) -> Deployment {
    let mut deployment = spec(subject, name);
    deployment.spec.power = power;
    deployment.data_exists = true;
    deployment
}

/// Logs in at the instance's endpoint, as any client would.
pub async fn connect(subject: &dyn Subject, name: &str, password: &str, mode: PgSslMode) -> Result<PgConnection, sqlx::Error> {
    connect_as(subject, name, ("app", "app"), password, mode).await
}

/// Logs in as superuser, with a password that the platform lets in for a minute.
pub async fn connect_as_superuser(subject: &dyn Subject, name: &str) -> PgConnection {
    subject.settle(name).await;
    let password = toygres_models::Password::generate();
    let until = chrono::Utc::now() + chrono::TimeDelta::minutes(1);
    subject.platform().open_superuser(&key(name), &password, until).await.unwrap();
    connect_as(subject, name, ("postgres", "postgres"), password.expose_secret(), PgSslMode::VerifyFull).await.unwrap()
}

async fn connect_as(
    subject: &dyn Subject,
    name: &str,
    (user, database): (&str, &str),
    password: &str,
    mode: PgSslMode,
) -> Result<PgConnection, sqlx::Error> {
    subject.settle(name).await;
    let platform = subject.platform();
    let endpoint = platform.endpoint(&key(name)).await.unwrap();
    let (mut host, mut port) = (endpoint.address.host, endpoint.address.port);
    if let Some(way) = platform.reach(&host, port).await.unwrap() {
        (host, port) = (way.host.clone(), way.port);
        // Open until the test's end, as the connection has to be.
        std::mem::forget(way);
    }
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&host)
        .port(port)
        .username(user)
        .password(password)
        .database(database)
        .ssl_mode(mode);
    if let Some(certificate) = &endpoint.address.ca_certificate_path {
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

/// Has the server log a line, as soon as it answers.
pub async fn say(subject: &dyn Subject, name: &str, words: &str) {
    let begun = Instant::now();
    let mut connection = loop {
        match connect(subject, name, PASSWORD, PgSslMode::VerifyFull).await {
            Ok(connection) => break connection,
            Err(error) => assert!(begun.elapsed() < READY, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    sqlx::raw_sql(&format!("DO $$ BEGIN RAISE LOG '{words}'; END $$")).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// The lines of a log until one that ends with these words, that one included.
pub async fn until(log: &mut LogStream, words: &str) -> Vec<LogLine> {
    let mut lines = Vec::new();
    loop {
        let line = tokio::time::timeout(READY, log.try_next()).await;
        let line = line.unwrap_or_else(|_| panic!("{words:?} doesn't come: {lines:#?}")).unwrap();
        lines.push(line.unwrap_or_else(|| panic!("the log ends without {words:?}: {lines:#?}")));
        if lines.last().is_some_and(|line| line.text.ends_with(words)) {
            return lines;
        }
    }
}

/// Waits for something to come true.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl FnMut() -> F) {
    eventually_within(Duration::from_secs(90), what, check).await;
}

/// The same for what takes longer.
pub async fn eventually_within<F: Future<Output = bool>>(limit: Duration, what: &str, mut check: impl FnMut() -> F) {
    let begun = Instant::now();
    while !check().await {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A module with a test for each check of the conformance suite. The function makes a subject, or
/// none where the platform isn't there.
macro_rules! conformance {
    ($module:ident, $subject:path) => {
        conformance!(
            $module,
            $subject,
            a_created_instance_is_reached_over_verified_tls_only,
            making_it_again_changes_nothing,
            creations_at_once_make_one_instance,
            instances_side_by_side_are_apart,
            removing_leaves_nothing_and_can_be_repeated,
            what_is_not_there_is_not_found,
            another_version_under_the_same_name_is_a_conflict,
            an_unknown_version_is_refused_with_the_known_ones,
            the_log_is_told_from_its_end,
            the_log_is_followed_over_restarts_and_gone_on_with_after_any_line,
            a_creation_cut_off_anywhere_is_finished_by_repeating,
            a_removal_cut_off_anywhere_is_finished_by_repeating,
            a_removal_overtakes_a_creation,
            stopping_keeps_data_address_and_password,
            what_can_not_start_is_stopped_as_well,
            what_never_came_up_is_stopped_as_well,
            a_restarted_control_plane_leaves_the_stopped_stopped,
            a_restart_happens_once_for_each_request,
            a_restart_cut_off_anywhere_is_finished_by_repeating,
            records_are_of_what_has_data,
            missing_data_is_never_made_again,
        );
    };
    ($module:ident, $subject:path, $($check:ident),+ $(,)?) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $check() {
                if let Some(subject) = $subject().await {
                    crate::support::checks::$check(&subject).await;
                }
            })+
        }
    };
}

pub fn secret(text: &str) -> SecretString {
    text.to_owned().into()
}
