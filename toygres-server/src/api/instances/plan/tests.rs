use std::collections::BTreeMap;

use chrono::Utc;
use proptest::prelude::*;
use sqlx::types::Json;
use toygres_models::{Labels, PlatformName};
use uuid::Uuid;

use super::*;

fn wanted(document: Value) -> Wanted {
    Wanted::check(&serde_json::from_value(document).unwrap()).unwrap()
}

fn running() -> Instance {
    let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    Instance {
        id: Uuid::nil(),
        namespace: "default".into(),
        name: "demo".into(),
        platform: PlatformName::Kubernetes,
        cpu: None,
        memory: None,
        storage_class: None,
        cluster_id: None,
        postgres_version: "17.4".into(),
        storage_size_gb: 10,
        use_load_balancer: true,
        dns_label: Some("blog".into()),
        labels: Json(Labels::try_from(labels).unwrap()),
        delete_protection: false,
        revision: 3,
        state: InstanceState::Running,
        health_status: None,
        ip_connection_string: None,
        dns_connection_string: None,
        health_check_orchestration_id: None,
        failure: None,
        created_at: Utc::now(),
        updated_at: Utc::now(),
        deleted_at: None,
    }
}

fn fields(changes: &[FieldChange]) -> Vec<&str> {
    changes.iter().map(|change| change.field.as_str()).collect()
}

#[test]
fn a_missing_instance_is_made_and_no_password_is_shown() {
    let plan = plan(None, &wanted(json!({ "name": "demo", "storage_size_gb": 5, "password": "hunter2" })), true, false);
    assert_eq!((plan.action, fields(&plan.changes)), (PlanAction::Create, vec!["storage_size_gb", "password"]));
    assert!(plan.revision.is_none() && !serde_json::to_string(&plan).unwrap().contains("hunter2"));
}

#[test]
fn what_a_document_leaves_out_stays_and_a_major_is_any_of_its_minors() {
    for same in [
        json!({ "name": "demo" }),
        json!({ "name": "demo", "postgres_version": "17", "labels": { "team": "a" }, "delete_protection": false }),
        json!({ "name": "demo", "postgres_version": 17, "labels": null, "dns_label": "blog", "use_load_balancer": true }),
    ] {
        let plan = plan(Some(&running()), &wanted(same.clone()), true, false);
        assert_eq!((plan.action, plan.changes.len(), plan.revision), (PlanAction::None, 0, Some(3)), "{same}");
    }
}

#[test]
fn what_may_change_changes_and_the_rest_is_refused_by_name() {
    let document = json!({ "name": "demo", "labels": {}, "delete_protection": true, "use_load_balancer": false });
    let update = plan(Some(&running()), &wanted(document), true, false);
    assert_eq!(update.action, PlanAction::Update);
    assert_eq!(fields(&update.changes), ["delete_protection", "labels", "use_load_balancer", "dns_label"]);

    let document = json!({ "name": "demo", "labels": {}, "platform": "local", "postgres_version": "17.5", "storage_size_gb": 11,
        "cpu": "2", "memory": "1Gi", "storage_class": "fast", "password": "x" });
    let refused = plan(Some(&running()), &wanted(document), false, false);
    assert_eq!(refused.action, PlanAction::Refuse);
    let expected = ["cpu", "memory", "platform", "postgres_version", "storage_class", "storage_size_gb", "password"];
    assert_eq!(fields(&refused.refused), expected);
    let text = format!("{:?}", refusal(&InstanceKey::parse("team", "demo").unwrap(), &refused));
    assert!(expected.iter().all(|field| text.contains(field)) && text.contains("Nothing was changed"), "{text}");
}

#[test]
fn after_a_failed_change_of_how_it_is_reached_the_same_document_changes_it_again() {
    let same = json!({ "name": "demo", "labels": { "team": "a" }, "use_load_balancer": true, "dns_label": "blog" });
    let again = plan(Some(&running()), &wanted(same), true, true);
    assert_eq!((again.action, fields(&again.changes)), (PlanAction::Update, vec!["dns_label", "use_load_balancer"]));
    assert!(again.changes.iter().all(|change| change.from == "(in doubt)"), "{again:?}");
    // One that says nothing about it leaves it.
    let silent = plan(Some(&running()), &wanted(json!({ "name": "demo", "labels": { "team": "a" } })), true, true);
    assert_eq!((silent.action, silent.changes.len()), (PlanAction::None, 0));
}

#[test]
fn an_instance_that_does_not_run_is_only_let_be() {
    let (same, other) = (json!({ "name": "demo" }), json!({ "name": "demo", "labels": {} }));
    let protection = json!({ "name": "demo", "delete_protection": true });
    let with_password = json!({ "name": "demo", "delete_protection": true, "password": "hunter2" });
    let both = json!({ "name": "demo", "delete_protection": true, "labels": {} });
    for (state, document, action) in [
        (InstanceState::Creating, &same, PlanAction::None),
        (InstanceState::Creating, &other, PlanAction::Refuse),
        (InstanceState::Failed, &same, PlanAction::Refuse),
        (InstanceState::Failed, &protection, PlanAction::Update),
        (InstanceState::Failed, &both, PlanAction::Refuse),
        (InstanceState::Failed, &with_password, PlanAction::Refuse),
        (InstanceState::Deleting, &protection, PlanAction::Refuse),
        (InstanceState::Deleting, &same, PlanAction::Refuse),
    ] {
        let plan = plan(Some(&Instance { state, ..running() }), &wanted(document.clone()), true, false);
        assert_eq!((plan.action, plan.reason.is_some()), (action, action == PlanAction::Refuse), "{state} {document}");
    }
}

fn instances() -> impl Strategy<Value = Instance> {
    let text = |pattern: &str| proptest::option::of(proptest::string::string_regex(pattern).unwrap());
    let key = prop_oneof!["[a-zA-Z0-9]{1,10}", Just("null".to_owned()), Just("example.org/env".into()), Just("1".into())];
    let value = prop_oneof!["[a-zA-Z0-9]{0,10}", "1e[0-9]", "0x[0-9A-F]{2}", Just("true".to_owned()), Just("no".into())];
    let labels = proptest::collection::btree_map(key, value, 0..5);
    let sizes =
        (1..=65_536_i32, any::<bool>(), text("[a-z][a-z0-9-]{1,10}[a-z0-9]"), any::<bool>(), "1[4-8](\\.(0|[1-9][0-9]?))?");
    let given = (text("[1-9][0-9]{0,3}m?"), text("[1-9][0-9]{0,3}(Mi|Gi|M|G)"), text("[a-z0-9]{1,9}(\\.[a-z0-9]{1,5})?"), labels);
    ("[a-z][a-z0-9]{0,9}x", "[a-z][a-z0-9]{0,9}", any::<bool>(), sizes, given).prop_map(
        |(name, namespace, local, (storage_size_gb, use_load_balancer, dns_label, delete_protection, version), given)| {
            let (cpu, memory, storage_class, labels) = given;
            Instance {
                name,
                namespace,
                platform: if local { PlatformName::Local } else { PlatformName::Kubernetes },
                postgres_version: version,
                storage_size_gb,
                use_load_balancer,
                dns_label: dns_label.filter(|_| use_load_balancer),
                cpu,
                memory,
                storage_class,
                labels: Json(Labels::try_from(labels).unwrap()),
                delete_protection,
                ..running()
            }
        },
    )
}

proptest! {
    /// What a running instance looks like as a document changes nothing, and an editor finds nothing wrong.
    #[test]
    fn the_document_of_an_instance_is_what_is_there(instance in instances()) {
        let document = InstanceManifest::from(&instance);
        let plan = plan(Some(&instance), &Wanted::check(&document).unwrap(), true, false);
        prop_assert_eq!(plan.action, PlanAction::None, "{:?}", plan);
        let json = serde_json::to_value(&document).unwrap();
        prop_assert!(crate::api::instances::manifest::tests::validator().is_valid(&json), "{}", json);
    }
}
