//! Events in the metadata store: the order in which they are seen, which of them are, and for how long.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use sqlx::types::chrono::Utc;
use tokio::task::JoinSet;
use toygres_e2e::event_stream::{ids_after, write_events};
use toygres_e2e::store_database::{StoreDatabase, database, key, new_instance, request_delete, to_state};
use toygres_e2e::wait::SOON;
use toygres_models::store::{Created, EventFilter, EventStart, Requested, StoreError};
use toygres_models::{Health, HealthReasonKind, HealthStatus, InstanceState, OperationKind, Store};

const WRITERS: usize = 200;
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Writes events in transactions that take their time, of which some come to nothing.
async fn write_slowly(store: Store, number: usize) -> Result<()> {
    for round in 0..5 {
        let mut tx = store.pool().begin().await?;
        sqlx::query("INSERT INTO events (kind, message, cause) VALUES ('written', $1, 'a test')")
            .bind(format!("{number}/{round}"))
            .execute(&mut *tx)
            .await?;
        sqlx::query("SELECT pg_sleep(random() * 0.002)").execute(&mut *tx).await?;
        if (number + round).is_multiple_of(7) {
            tx.rollback().await?
        } else {
            tx.commit().await?
        }
        store.create_instance(&new_instance("default", &format!("demo-{number}-{round}"))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_pauses_after_its_event_holds_up_nobody_for_long() {
    let Some(StoreDatabase { store, options, .. }) = &database().await.unwrap() else { return };
    let second = Store::connect(options.clone(), 2).await.unwrap();
    let mut paused = second.pool().begin().await.unwrap();
    sqlx::raw_sql("INSERT INTO events (kind, message, cause) VALUES ('written', '', 'a test')")
        .execute(&mut *paused)
        .await
        .unwrap();
    let new = new_instance("default", "demo");
    let created = tokio::time::timeout(SOON, store.create_instance(&new)).await.expect("it waits on");
    assert!(matches!(created, Ok(Created::New(_))), "{created:?}");
    assert!(paused.commit().await.is_err(), "its event has a number that others went past");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_on_after_its_last_event_misses_none_of_many_writers() {
    let Some(database) = database().await.unwrap() else { return };
    let second = Store::connect(database.options.clone(), 10).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (store, done) = (database.store.clone(), done.clone());
        async move {
            let (mut seen, mut last, mut reads) = (Vec::new(), 0, 0);
            loop {
                let is_last = done.load(Ordering::SeqCst);
                let events = store.events_matching(&EventFilter::everything(), last, 50).await.unwrap();
                reads += 1;
                last = events.last().map_or(last, |event| event.id);
                seen.extend(events.iter().map(|event| event.id));
                if events.is_empty() && is_last {
                    return (seen, reads);
                }
            }
        }
    });
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let store = if number % 2 == 0 { database.store.clone() } else { second.clone() };
        writers.spawn(write_slowly(store, number));
    }
    for written in writers.join_all().await {
        written.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let (seen, reads) = reader.await.unwrap();
    let there = ids_after(database.store.pool(), 0).await.unwrap();
    println!(
        "{} events by {WRITERS} writers, seen in {reads} reads; {} ids were given up",
        there.len(),
        there.last().unwrap() - there.len() as i64
    );
    assert!(seen.is_sorted() && there.len() > WRITERS * 9, "{}", there.len());
    assert_eq!(seen, there);
    second.pool().close().await;
}

#[tokio::test]
async fn a_filter_means_the_same_in_sql_and_here() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    for namespace in [None, Some("one"), Some("two")] {
        for name in [None, Some("a"), Some("b")] {
            for kind in ["x", "y", "z"] {
                sqlx::query("INSERT INTO events (namespace, instance_name, kind, message, cause) VALUES ($1, $2, $3, '', '')")
                    .bind(namespace)
                    .bind(name)
                    .bind(kind)
                    .execute(store.pool())
                    .await
                    .unwrap();
            }
        }
    }
    let all = store.events_matching(&EventFilter::everything(), 0, 1000).await.unwrap();
    assert_eq!(all.len(), 27);
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let mut counts = Vec::new();
    for namespaces in [None, words(&[]), words(&["one"]), words(&["one", "two"])] {
        for without_namespace in [false, true] {
            for instance_name in [None, Some("a".to_owned())] {
                for kinds in [None, words(&["x"]), words(&["x", "z"])] {
                    let filter = EventFilter {
                        namespaces: namespaces.clone(),
                        without_namespace,
                        instance_id: None,
                        instance_name: instance_name.clone(),
                        kinds,
                    };
                    let by_sql = store.events_matching(&filter, 0, 1000).await.unwrap();
                    let here: Vec<_> = all.iter().filter(|event| filter.lets_through(event)).cloned().collect();
                    assert_eq!(by_sql, here, "{filter:?}");
                    counts.push(here.len());
                }
            }
        }
    }
    assert!(counts.contains(&0) && counts.contains(&27) && counts.contains(&1), "{counts:?}");
}

#[tokio::test]
async fn old_events_go_from_the_front_and_who_missed_some_is_told() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let pool = store.pool();
    let everything = EventFilter::everything();
    write_events(pool, 10, 1).await.unwrap();
    let ids = ids_after(pool, 0).await.unwrap();
    let at = async |start| store.event_position(&everything, start).await;
    assert_eq!(at(EventStart::Now).await.unwrap(), ids[9]);
    assert_eq!(at(EventStart::After(0)).await.unwrap(), 0);
    assert_eq!(at(EventStart::Last(3)).await.unwrap(), ids[6]);
    assert_eq!(at(EventStart::Last(300)).await.unwrap(), 0);
    assert_eq!(at(EventStart::Since(Utc::now() - HOUR)).await.unwrap(), ids[0] - 1);
    assert_eq!(at(EventStart::Since(Utc::now() + HOUR)).await.unwrap(), ids[9]);
    let unknown = at(EventStart::After(ids[9] + 1)).await;
    assert!(matches!(unknown, Err(StoreError::NoSuchEvent { .. })), "{unknown:?}");

    // All but one in the middle are old; what follows that one has to stay.
    let day = Duration::from_secs(24 * 60 * 60);
    sqlx::query("UPDATE events SET created_at = now() - interval '2 days' WHERE id <> $1")
        .bind(ids[5])
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(store.prune_events(day, 3).await.unwrap(), 3);
    assert_eq!(store.events_pruned_through().await.unwrap(), ids[2]);
    assert_eq!((store.prune_events(day, 3).await.unwrap(), store.prune_events(day, 3).await.unwrap()), (2, 0));
    assert_eq!(ids_after(pool, 0).await.unwrap(), ids[5..]);
    let missed = at(EventStart::After(ids[1])).await;
    assert!(matches!(missed, Err(StoreError::EventsPruned { oldest, .. }) if oldest == ids[5]), "{missed:?}");
    assert_eq!(at(EventStart::After(ids[4])).await.unwrap(), ids[4], "it has seen all that are gone");
    assert_eq!((at(EventStart::After(0)).await.unwrap(), at(EventStart::Last(300)).await.unwrap()), (ids[4], ids[4]));

    // With nothing left the numbers go on.
    sqlx::query("UPDATE events SET created_at = now() - interval '2 days'").execute(pool).await.unwrap();
    store.prune_events(day, 1000).await.unwrap();
    assert_eq!((at(EventStart::Now).await.unwrap(), at(EventStart::After(ids[9])).await.unwrap()), (ids[9], ids[9]));
    write_events(pool, 1, 1).await.unwrap();
    assert!(ids_after(pool, 0).await.unwrap()[0] > ids[9]);
}

#[tokio::test]
async fn servers_prune_one_at_a_time() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    write_events(store.pool(), 500, 1).await.unwrap();
    sqlx::query("UPDATE events SET created_at = now() - interval '2 days'").execute(store.pool()).await.unwrap();
    let mut pruning = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        pruning.spawn(async move {
            let mut gone = 0;
            while !ids_after(store.pool(), 0).await.unwrap().is_empty() {
                gone += store.prune_events(Duration::from_secs(60), 7).await.unwrap();
            }
            gone
        });
    }
    let gone: u64 = pruning.join_all().await.into_iter().sum();
    assert_eq!((gone, ids_after(store.pool(), 0).await.unwrap().len()), (500, 0));
}

/// As if all of it had happened ten days ago.
async fn age(store: &Store) {
    sqlx::raw_sql(
        "UPDATE toygres.events SET created_at = now() - interval '10 days';
         UPDATE toygres.operations SET finished_at = now() - interval '10 days' WHERE finished_at IS NOT NULL;
         UPDATE toygres.instances SET deleted_at = now() - interval '10 days' WHERE state = 'deleted'",
    )
    .execute(store.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_gone_is_forgotten_and_what_lives_keeps_how_it_was_made() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    for name in ["alive", "gone", "at-work"] {
        let Created::New(create) = store.create_instance(&new_instance("default", name)).await.unwrap() else {
            panic!("not new")
        };
        if name != "at-work" {
            store.begin_step(create.id, "deploy-postgres").await.unwrap();
            store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
        }
    }
    request_delete(store, &key("default", "gone"), &Requested::by("test")).await.unwrap();
    let gone = store.instance(&key("default", "gone")).await.unwrap();
    let delete = store.last_operation(gone.id, OperationKind::DELETE).await.unwrap().unwrap();
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    // Of what was done with one that lives, the last change that ended by itself stays, and what is at work.
    let alive = store.instance(&key("default", "alive")).await.unwrap();
    for (number, state) in ["failed", "cancelled", "running"].iter().enumerate() {
        sqlx::query(
            "INSERT INTO operations (id, kind, instance_id, namespace, instance_name, cause, actor, state, finished_at,
                place, summary, spec_before, spec, generation, state_before)
             SELECT $1::uuid, 'update', id, namespace, name, '', '', $3, now(), 'local', 'update', spec, spec, generation, state
             FROM instances WHERE id = $2",
        )
        .bind(format!("ffffffff-ffff-7000-8000-00000000000{number}"))
        .bind(alive.id)
        .bind(state)
        .execute(store.pool())
        .await
        .unwrap();
    }
    let week = Duration::from_secs(7 * 24 * 60 * 60);
    let forget = async || {
        let events = store.prune_events(week, 1000).await.unwrap();
        let operations = store.old_operations(week, 1000).await.unwrap();
        let operations = store.forget_operations(&operations).await.unwrap();
        (events, operations, store.forget_deleted_instances(week, 1000).await.unwrap())
    };
    assert_eq!(forget().await, (0, 0, 0), "nothing is old");
    age(store).await;
    let events = i64::try_from(ids_after(store.pool(), 0).await.unwrap().len()).unwrap();
    assert_eq!(forget().await, (u64::try_from(events).unwrap(), 3, 1));
    assert_eq!(forget().await, (0, 0, 0), "again");
    let updates: Vec<(String,)> =
        sqlx::query_as("SELECT state FROM operations WHERE instance_id = $1 AND kind = 'update' ORDER BY id")
            .bind(alive.id)
            .fetch_all(store.pool())
            .await
            .unwrap();
    assert_eq!(updates.iter().map(|(state,)| state.as_str()).collect::<Vec<_>>(), ["failed", "running"]);
    let create = store.last_operation(alive.id, OperationKind::CREATE).await.unwrap().unwrap();
    assert_eq!(create.steps.len(), 1);
    assert!(store.instance_by_id(gone.id).await.is_err() && store.operation(delete.id).await.unwrap().is_none());
    assert_eq!(store.unfinished_operations().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_change_of_health_is_an_event_with_its_reason() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    let full = Health::of(HealthStatus::Unhealthy, HealthReasonKind::DiskFull, "its disk is full");
    let away = Health::of(HealthStatus::Unknown, HealthReasonKind::NotObserved, "the cluster is away");
    // One that isn't up yet has none.
    store.record_health(create.instance_id, &full, Utc::now(), None).await.unwrap();
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    for health in [&Health::healthy(), &full, &full, &away, &full, &Health::healthy(), &away, &Health::healthy()] {
        store.record_health(create.instance_id, health, Utc::now(), Some("sweep")).await.unwrap();
    }
    let events = store.events(create.instance_id, 0, 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["create_requested", "instance_running", "instance_unhealthy", "instance_healthy"]);
    assert_eq!(events[2].message, "its disk is full");
    let changes = store.health_changes(create.instance_id, 100).await.unwrap();
    let seen: Vec<_> = changes.iter().rev().map(|change| change.status.as_str()).collect();
    assert_eq!(seen, ["healthy", "unhealthy", "unknown", "unhealthy", "healthy", "unknown", "healthy"]);
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!(instance.status.health_check_orchestration_id.as_deref(), Some("sweep"));
}

#[tokio::test]
async fn what_changes_again_and_again_is_told_once_and_bounded() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let bad = Health::of(HealthStatus::Unhealthy, HealthReasonKind::NoAnswer, "no answer");
    for _ in 0..150 {
        store.record_health(create.instance_id, &bad, Utc::now(), None).await.unwrap();
        store.record_health(create.instance_id, &Health::healthy(), Utc::now(), None).await.unwrap();
    }
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!(instance.status.health_status, Some(HealthStatus::Degraded), "{:?}", instance.status);
    let events = store.events(create.instance_id, 0, 1000).await.unwrap();
    let flapping = events.iter().filter(|event| event.kind == "instance_flapping").count();
    assert!(flapping == 1 && events.len() < 16, "{events:#?}");
    assert_eq!(store.health_changes(create.instance_id, 1000).await.unwrap().len(), 200);
    // It has been well for long.
    let age = "UPDATE health_changes SET at = at - interval '1 hour'";
    sqlx::query(age).execute(store.pool()).await.unwrap();
    store.record_health(create.instance_id, &Health::healthy(), Utc::now(), None).await.unwrap();
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!(instance.status.health(), Some(Health::healthy()));
}
