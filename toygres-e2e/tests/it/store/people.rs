//! The metadata store on a real PostgreSQL: tokens, and quotas under concurrency.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::task::JoinSet;
use toygres_e2e::store_database::{database, key, new_instance, request_delete, to_state};
use toygres_e2e::wait::{SOON, eventually};
use toygres_models::store::{Created, NewInstance, NewToken, OperationRequested, Quota, Requested, StoreError, TokenCheck};
use toygres_models::{BearerToken, InstanceState, Namespace, Role, Store};

#[expect(clippy::unwrap_used, reason = "the names are the tests' own")]
fn new_token(name: &str) -> NewToken {
    NewToken { name: name.parse().unwrap(), role: Role::Editor, namespaces: None, lasts: None, at_most_until: None }
}

fn by(actor: &str) -> Requested {
    Requested::by(actor)
}

#[expect(clippy::unwrap_used, reason = "the name is right")]
fn team() -> Namespace {
    "team".parse().unwrap()
}

/// What becomes of a token that is sent now.
async fn checked(store: &Store, sent: &BearerToken) -> Result<&'static str> {
    Ok(match store.check_token(sent).await? {
        TokenCheck::Valid(_) => "valid",
        TokenCheck::Unknown => "unknown",
        TokenCheck::Expired(_) => "expired",
        TokenCheck::Revoked => "revoked",
    })
}

/// A token with the id of `token` and another's secret.
fn with_another_secret(token: &BearerToken) -> Option<BearerToken> {
    use secrecy::ExposeSecret;
    let other = BearerToken::generate().expose();
    let secret = other.expose_secret().rsplit('_').next()?;
    BearerToken::parse(format!("toygres_{}_{secret}", token.id.simple()).as_bytes())
}

#[tokio::test]
async fn a_token_is_good_until_it_is_revoked_and_only_its_hash_is_kept() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let new = NewToken { namespaces: Some(vec![team()]), ..new_token("ann") };
    let (bearer, token) = store.create_token(&new, &by("root")).await.unwrap();
    assert_eq!((token.created_by.as_str(), token.last_used_at), ("root", None));
    let last_used = async || store.token(&new.name).await.unwrap().last_used_at;
    for stranger in [BearerToken::generate(), with_another_secret(&bearer).unwrap()] {
        assert_eq!(checked(store, &stranger).await.unwrap(), "unknown");
    }
    assert_eq!(last_used().await, None, "a stranger's request is noted as a use");
    assert!(matches!(store.check_token(&bearer).await.unwrap(), TokenCheck::Valid(seen) if seen == token));
    let used = last_used().await.expect("its use isn't noted");
    assert_eq!(checked(store, &bearer).await.unwrap(), "valid");
    assert_eq!(last_used().await, Some(used), "noted again within a minute");
    let earlier = "UPDATE tokens SET last_used_at = now() - interval '61 seconds'";
    sqlx::query(earlier).execute(store.pool()).await.unwrap();
    assert_eq!(checked(store, &bearer).await.unwrap(), "valid");
    assert!(last_used().await.unwrap() >= used, "not noted after a minute");

    let again = store.create_token(&new, &by("root")).await;
    assert!(matches!(&again, Err(StoreError::TokenExists(name)) if name == "ann"), "{again:?}");

    let revoked = store.revoke_token(&new.name, &by("bob")).await.unwrap();
    assert_eq!(revoked.revoked_by.as_deref(), Some("bob"));
    assert_eq!(checked(store, &bearer).await.unwrap(), "revoked");
    // Whoever doesn't know the secret isn't told that there was such a token.
    assert_eq!(checked(store, &with_another_secret(&bearer).unwrap()).await.unwrap(), "unknown");
    assert!(matches!(store.revoke_token(&new.name, &by("bob")).await, Err(StoreError::TokenNotFound(_))));
    assert!(store.tokens(None, 10).await.unwrap().is_empty());
    let (second, _) = store.create_token(&new, &by("root")).await.unwrap();
    assert_ne!(second.id, bearer.id, "an id was used again");

    let events: Vec<(String, String, Option<String>)> =
        sqlx::query_as("SELECT kind, actor, namespace FROM events ORDER BY id").fetch_all(store.pool()).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|(kind, actor, _)| (kind.as_str(), actor.as_str())).collect();
    assert_eq!(kinds, [("token_created", "root"), ("token_revoked", "bob"), ("token_created", "root")]);
}

#[tokio::test]
async fn the_databases_clock_ends_a_token_and_none_outlives_its_maker() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let hour = Duration::from_secs(3600);
    let (bearer, maker) = store.create_token(&NewToken { lasts: Some(hour), ..new_token("ann") }, &by("root")).await.unwrap();
    assert_eq!(checked(store, &bearer).await.unwrap(), "valid");
    sqlx::query("UPDATE tokens SET expires_at = now() - interval '1 microsecond'").execute(store.pool()).await.unwrap();
    assert_eq!(checked(store, &bearer).await.unwrap(), "expired");
    assert_eq!(checked(store, &with_another_secret(&bearer).unwrap()).await.unwrap(), "unknown");

    for lasts in [None, Some(2 * hour)] {
        let longer = NewToken { lasts, at_most_until: maker.expires_at, ..new_token("bob") };
        let refused = store.create_token(&longer, &by("ann")).await;
        assert!(matches!(refused, Err(StoreError::OutlivesMaker(_))), "{refused:?}");
    }
    let shorter = NewToken { lasts: Some(hour / 2), at_most_until: maker.expires_at, ..new_token("bob") };
    store.create_token(&shorter, &by("ann")).await.unwrap();
}

fn numbered(number: usize) -> NewInstance {
    new_instance("team", &format!("i{number}"))
}

/// Asks for `count` instances at once, turn and turn about through the stores; how many were taken, and
/// what the others were told.
async fn creates_at_once(stores: &[Store], count: usize) -> Result<(usize, Vec<String>)> {
    let mut creates = JoinSet::new();
    for (number, store) in (0..count).zip(stores.iter().cycle().cloned()) {
        creates.spawn(async move { store.create_instance(&numbered(number)).await });
    }
    let (mut taken, mut refused) = (0, Vec::new());
    for created in creates.join_all().await {
        match created {
            Ok(Created::New(_)) => taken += 1,
            Err(StoreError::QuotaExceeded(why)) => refused.push(why),
            Ok(Created::Existing(instance, _)) => bail!("{} was there", instance.name),
            Err(other) => return Err(other.into()),
        }
    }
    Ok((taken, refused))
}

#[tokio::test]
async fn quotas_hold_whoever_asks_at_once_through_whichever_server() {
    let Some(database) = database().await.unwrap() else { return };
    let other = Store::connect(database.options.clone(), 10).await.unwrap();
    for (stores, quota) in [
        (vec![database.store.clone()], Quota { max_instances: Some(7), max_storage_gb: None }),
        (vec![database.store.clone(), other.clone()], Quota { max_instances: Some(7), max_storage_gb: Some(1000) }),
        // Ten GB each.
        (vec![database.store.clone(), other.clone()], Quota { max_instances: None, max_storage_gb: Some(79) }),
    ] {
        sqlx::raw_sql("TRUNCATE instances, operations, operation_steps, events CASCADE")
            .execute(database.store.pool())
            .await
            .unwrap();
        database.store.set_quota(&team(), quota, None, &by("root")).await.unwrap();
        let (taken, refused) = creates_at_once(&stores, 30).await.unwrap();
        assert_eq!((taken, refused.len()), (7, 23), "{quota}");
        assert!(refused.iter().all(|why| why.contains("team") && why.contains("70 GB") || why.contains("has 7")), "{refused:?}");
        let used = other.namespace(&team()).await.unwrap();
        assert_eq!((used.instances, used.storage_gb), (7, 70));
        println!("{} stores, {quota}: {taken} of 30 taken", stores.len());
    }
    // Other namespaces have room.
    assert!(matches!(other.create_instance(&new_instance("default", "demo")).await, Ok(Created::New(_))));
}

#[tokio::test]
async fn no_create_misses_the_first_quota_that_was_set_before_it_ended() {
    let Some(database) = database().await.unwrap() else { return };
    let store = database.store.clone();
    // Holds the create in the middle of its transaction.
    let mut held = store.pool().begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE operations IN EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let waiting_for = async |what: &str, locktype: &str| {
        eventually(what, SOON, async || {
            let (waiting,): (bool,) = sqlx::query_as("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = $1 AND NOT granted)")
                .bind(locktype)
                .fetch_one(database.store.pool())
                .await?;
            Ok(waiting.then_some(()))
        })
        .await
        .unwrap();
    };
    let early = tokio::spawn({
        let store = store.clone();
        async move { store.create_instance(&numbered(0)).await }
    });
    waiting_for("the create to be held", "relation").await;
    let quota = Quota { max_instances: Some(1), max_storage_gb: None };
    let set = tokio::spawn({
        let store = store.clone();
        async move { store.set_quota(&team(), quota, None, &by("root")).await }
    });
    waiting_for("the quota to wait for the create", "advisory").await;
    held.rollback().await.unwrap();
    assert!(matches!(early.await.unwrap(), Ok(Created::New(_))));
    assert_eq!(set.await.unwrap().unwrap().instances, 1, "the quota was set beside the create");
    assert!(matches!(store.create_instance(&numbered(1)).await, Err(StoreError::QuotaExceeded(_))));
}

#[tokio::test]
async fn a_quota_below_the_use_stops_only_what_is_new() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    assert!(matches!(store.namespace(&team()).await, Err(StoreError::NamespaceNotFound(_))));
    let (taken, _) = creates_at_once(std::slice::from_ref(store), 3).await.unwrap();
    let before = store.namespace(&team()).await.unwrap();
    assert_eq!((taken, before.instances, before.storage_gb, before.revision), (3, 3, 30, 0));
    let two = Quota { max_instances: Some(2), max_storage_gb: None };
    let set = store.set_quota(&team(), two, Some(0), &by("root")).await.unwrap();
    assert_eq!((set.instances, set.max_instances, set.revision), (3, Some(2), 1));
    let same = store.set_quota(&team(), two, None, &by("root")).await.unwrap();
    assert_eq!(same.revision, 1, "nothing changed, and it was counted");
    let stale = store.set_quota(&team(), Quota::default(), Some(0), &by("root")).await;
    assert!(matches!(&stale, Err(StoreError::RevisionMismatch { current: 1, .. })), "{stale:?}");
    assert!(matches!(store.create_instance(&numbered(3)).await, Err(StoreError::QuotaExceeded(_))));
    // The same create again is still the same instance.
    assert!(matches!(store.create_instance(&numbered(0)).await, Ok(Created::Existing(..))));
    for number in 0..2 {
        let key = key("team", &format!("i{number}"));
        let OperationRequested::New(delete) = request_delete(store, &key, &by("test")).await.unwrap() else { panic!("not new") };
        assert!(matches!(store.create_instance(&numbered(3)).await, Err(StoreError::QuotaExceeded(_))), "too early");
        store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    }
    assert!(matches!(store.create_instance(&numbered(3)).await, Ok(Created::New(_))));
    assert_eq!(store.set_quota(&team(), Quota::default(), Some(1), &by("ann")).await.unwrap().max_instances, None);
    let events: Vec<(String, Option<String>, String)> =
        sqlx::query_as("SELECT actor, namespace, message FROM events WHERE kind = 'quota_changed' ORDER BY id")
            .fetch_all(store.pool())
            .await
            .unwrap();
    let team = Some("team".to_owned());
    assert_eq!(
        events,
        [
            ("root".into(), team.clone(), "at most 2 instances, any storage".into()),
            ("ann".into(), team, "any number of instances, any storage".into())
        ]
    );
}

#[tokio::test]
async fn lists_of_namespaces_and_tokens_go_on_after_a_name() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    for name in ["c", "a", "b"] {
        store.create_token(&new_token(name), &by("root")).await.unwrap();
        store.create_instance(&new_instance(name, "demo")).await.unwrap();
    }
    store.set_quota(&"d".parse().unwrap(), Quota::default(), None, &by("root")).await.unwrap();
    let names = |tokens: Vec<toygres_models::store::Token>| tokens.into_iter().map(|token| token.name).collect::<Vec<_>>();
    assert_eq!(names(store.tokens(None, 2).await.unwrap()), ["a", "b"]);
    assert_eq!(names(store.tokens(Some(&"b".parse().unwrap()), 2).await.unwrap()), ["c"]);
    let names = |found: Vec<toygres_models::store::NamespaceRecord>| found.into_iter().map(|one| one.name).collect::<Vec<_>>();
    assert_eq!(names(store.namespaces(None, None, 10).await.unwrap()), ["a", "b", "c", "d"]);
    let among = ["b".to_owned(), "d".to_owned(), "nowhere".to_owned()];
    assert_eq!(names(store.namespaces(Some(&among), Some(&"b".parse().unwrap()), 10).await.unwrap()), ["d"]);
}
