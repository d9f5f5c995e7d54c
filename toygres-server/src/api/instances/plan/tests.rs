use std::collections::BTreeMap;

use chrono::Utc;
use proptest::prelude::*;
use serde_json::json;
use sqlx::types::Json;
use toygres_models::instance::InstanceStatus;
use toygres_models::{Labels, OperationKind, OperationState, PlatformName, Power};
use uuid::Uuid;

use super::*;

fn request(document: Value) -> Request {
    Request::check(&serde_json::from_value(document).unwrap()).unwrap()
}

fn running() -> Instance {
    let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    let spec = InstanceSpec {
        use_load_balancer: true,
        dns_label: Some("blog".parse().unwrap()),
        labels: Labels::try_from(labels).unwrap(),
        ..InstanceSpec::new(PlatformName::Kubernetes, "17.4".parse().unwrap())
    };
    Instance {
        id: Uuid::nil(),
        namespace: "default".into(),
        name: "demo".into(),
        cluster_id: None,
        spec: Json(spec),
        generation: 3,
        state: InstanceState::Running,
        status: Json(InstanceStatus::default()),
        observed_generation: 3,
        created_at: Utc::now(),
        updated_at: Utc::now(),
        deleted_at: None,
    }
}

fn at_work(instance: &Instance) -> Operation {
    Operation {
        id: Uuid::nil(),
        kind: OperationKind::CREATE,
        instance_id: instance.id,
        namespace: instance.namespace.clone(),
        instance_name: instance.name.clone(),
        place: instance.place().to_owned(),
        summary: "create".into(),
        input: Json(json!({})),
        spec_before: instance.spec.clone(),
        spec: instance.spec.clone(),
        generation: instance.generation,
        state_before: instance.state,
        state: OperationState::Running,
        reverting: false,
        cause: "a test".into(),
        actor: "toygres".into(),
        retry_of: None,
        cancel_requested_at: None,
        cancel_requested_by: None,
        error: None,
        revision: 1,
        created_at: Utc::now(),
        started_at: None,
        finished_at: None,
        steps: Vec::new(),
        progress: None,
        expected_seconds: None,
    }
}

/// Compares with an instance on which nothing is at work and of which nothing is missing.
fn planned(instance: &Instance, document: Value) -> Planned {
    let known = Known { instance, at_work: None, same_password: true, has_drifted: false };
    plan(&known, &request(document)).unwrap()
}

fn fields(changes: &[FieldChange]) -> Vec<&str> {
    changes.iter().map(|change| change.field.as_str()).collect()
}

#[test]
fn a_missing_instance_is_made_and_no_password_is_shown() {
    let plan = plan_creation(&request(json!({ "name": "demo", "storage_size_gb": 5, "password": "hunter2" })));
    assert_eq!((plan.action, fields(&plan.changes)), (PlanAction::Create, vec!["storage_size_gb", "password"]));
    assert!(plan.generation.is_none() && !serde_json::to_string(&plan).unwrap().contains("hunter2"));
}

#[test]
fn what_a_document_leaves_out_stays_and_a_major_is_any_of_its_minors() {
    for same in [
        json!({ "name": "demo" }),
        json!({ "name": "demo", "postgres_version": "17", "labels": { "team": "a" }, "delete_protection": false }),
        json!({ "name": "demo", "postgres_version": 17, "power": null, "dns_label": "blog", "use_load_balancer": true }),
        json!({ "name": "demo", "postgres_version": null, "platform": null, "storage_size_gb": null, "power": "running" }),
    ] {
        let Planned { plan, spec, repair } = planned(&running(), same.clone());
        assert_eq!((plan.action, plan.changes.len(), plan.generation), (PlanAction::None, 0, Some(3)), "{same}");
        assert_eq!((spec, repair), (running().spec.0, false), "{same}");
    }
}

#[test]
fn what_may_change_changes_and_the_rest_is_refused_by_name() {
    let document = json!({ "name": "demo", "labels": {}, "delete_protection": true, "use_load_balancer": false });
    let update = planned(&running(), document);
    assert_eq!(update.plan.action, PlanAction::Update);
    // A private instance has no public name.
    assert_eq!(fields(&update.plan.changes), ["use_load_balancer", "dns_label", "labels", "delete_protection"]);
    assert!(update.plan.changes.iter().all(|change| change.can_revert), "{:?}", update.plan);
    let effects: Vec<_> = update.plan.changes.iter().map(|change| change.effect).collect();
    assert_eq!(effects, [Effect::Live, Effect::Live, Effect::Record, Effect::Record]);
    assert!(update.repair && update.plan.unavailable.is_none());

    let document = json!({ "name": "demo", "labels": {}, "platform": "local", "postgres_version": "17.5", "storage_size_gb": 11,
        "cpu": "2", "memory": "1Gi", "storage_class": "fast", "password": "x" });
    let instance = running();
    let known = Known { instance: &instance, at_work: None, same_password: false, has_drifted: false };
    let refused = plan(&known, &request(document)).unwrap().plan;
    assert_eq!(refused.action, PlanAction::Refuse);
    let expected = ["platform", "postgres_version", "storage_size_gb", "cpu", "memory", "storage_class", "password"];
    assert_eq!(fields(&refused.refused), expected);
    let text = format!("{:?}", refusal(&InstanceKey::parse("team", "demo").unwrap(), &refused));
    assert!(expected.iter().all(|field| text.contains(field)) && text.contains("Nothing was changed"), "{text}");
}

#[test]
fn a_null_is_the_default() {
    let unlabeled = planned(&running(), json!({ "name": "demo", "labels": null, "dns_label": null }));
    assert_eq!(fields(&unlabeled.plan.changes), ["dns_label", "labels"]);
    assert!(unlabeled.spec.labels.is_empty() && unlabeled.spec.dns_label.is_none() && unlabeled.spec.use_load_balancer);
}

#[test]
fn a_stop_is_told_with_what_clients_notice() {
    let stop = planned(&running(), json!({ "name": "demo", "power": "stopped" }));
    assert_eq!((stop.plan.action, stop.plan.changes[0].effect), (PlanAction::Update, Effect::Offline));
    assert!(stop.plan.unavailable.is_some_and(|words| words.contains("until the instance is started")));
    assert_eq!((stop.spec.power, stop.repair), (Power::Stopped, true));
}

#[test]
fn where_the_platform_is_not_what_the_spec_says_the_same_document_repairs_it() {
    let same = json!({ "name": "demo" });
    let behind = Instance { observed_generation: 2, ..running() };
    let again = planned(&behind, same.clone());
    assert_eq!((again.plan.action, again.plan.changes.len(), again.repair), (PlanAction::Update, 0, true));
    // A change of the record alone does not touch the platform.
    let labels = planned(&behind, json!({ "name": "demo", "labels": {} }));
    assert_eq!((labels.plan.action, labels.repair), (PlanAction::Update, false));

    let instance = running();
    let known = Known { instance: &instance, at_work: None, same_password: true, has_drifted: true };
    let repair = plan(&known, &request(same.clone())).unwrap();
    assert_eq!((repair.plan.action, repair.repair), (PlanAction::Update, true));
    // What is at work on it may be bringing it there.
    let operation = at_work(&behind);
    let known = Known { instance: &behind, at_work: Some(&operation), same_password: true, has_drifted: false };
    assert_eq!(plan(&known, &request(same)).unwrap().plan.action, PlanAction::None);
}

#[test]
fn what_touches_the_platform_waits_for_what_is_at_work_and_a_deleted_one_is_left() {
    let (same, live) = (json!({ "name": "demo" }), json!({ "name": "demo", "power": "stopped" }));
    let record = json!({ "name": "demo", "labels": {}, "delete_protection": true });
    let both = json!({ "name": "demo", "delete_protection": true, "use_load_balancer": false });
    for (state, busy, document, action) in [
        (InstanceState::Creating, true, &same, PlanAction::None),
        (InstanceState::Creating, true, &live, PlanAction::Refuse),
        (InstanceState::Creating, true, &record, PlanAction::Update),
        (InstanceState::Running, true, &record, PlanAction::Update),
        (InstanceState::Running, true, &both, PlanAction::Refuse),
        (InstanceState::Running, true, &same, PlanAction::None),
        (InstanceState::Stopped, false, &both, PlanAction::Update),
        (InstanceState::Failed, false, &live, PlanAction::Update),
        (InstanceState::Failed, false, &record, PlanAction::Update),
        (InstanceState::Deleting, true, &record, PlanAction::Refuse),
        (InstanceState::Deleting, true, &same, PlanAction::Refuse),
    ] {
        let instance = Instance { state, ..running() };
        let operation = at_work(&instance);
        let known = Known { instance: &instance, at_work: busy.then_some(&operation), same_password: true, has_drifted: false };
        let plan = plan(&known, &request(document.clone())).unwrap().plan;
        assert_eq!((plan.action, plan.reason.is_some()), (action, action == PlanAction::Refuse), "{state} {document}");
    }
}

#[test]
fn fields_that_do_not_go_together_with_what_is_there_are_named() {
    let mut private = running();
    private.spec.0.use_load_balancer = false;
    private.spec.0.dns_label = None;
    // Good by itself, as the instance may be public.
    let known = Known { instance: &private, at_work: None, same_password: true, has_drifted: false };
    let named = Request { fields: json!({ "dns_label": "blog" }).as_object().unwrap().clone(), password: None };
    assert_eq!(plan(&known, &named).err().unwrap().field, "dns_label");
}

fn instances() -> impl Strategy<Value = Instance> {
    let text = |pattern: &str| proptest::option::of(proptest::string::string_regex(pattern).unwrap());
    let key = prop_oneof!["[a-zA-Z0-9]{1,10}", Just("null".to_owned()), Just("example.org/env".into()), Just("1".into())];
    let value = prop_oneof!["[a-zA-Z0-9]{0,10}", "1e[0-9]", "0x[0-9A-F]{2}", Just("true".to_owned()), Just("no".into())];
    let labels = proptest::collection::btree_map(key, value, 0..5);
    let sizes =
        (1..=65_536_i32, any::<bool>(), text("[a-z][a-z0-9-]{1,10}[a-z0-9]"), any::<bool>(), "1[4-8](\\.(0|[1-9][0-9]?))?");
    let given = (
        any::<bool>(),
        text("[1-9][0-9]{0,3}m?"),
        text("[1-9][0-9]{0,3}(Mi|Gi|M|G)"),
        text("[a-z0-9]{1,9}(\\.[a-z0-9]{1,5})?"),
        labels,
    );
    ("[a-z][a-z0-9]{0,9}x", "[a-z][a-z0-9]{0,9}", any::<bool>(), sizes, given).prop_map(
        |(name, namespace, local, (storage_size_gb, use_load_balancer, dns_label, delete_protection, version), given)| {
            let (stopped, cpu, memory, storage_class, labels) = given;
            let spec = InstanceSpec {
                storage_size_gb: i64::from(storage_size_gb).try_into().unwrap(),
                use_load_balancer,
                dns_label: dns_label.filter(|_| use_load_balancer).map(|label| label.parse().unwrap()),
                cpu: cpu.map(|cpu| cpu.parse().unwrap()),
                memory: memory.map(|memory| memory.parse().unwrap()),
                storage_class: storage_class.map(|class| class.parse().unwrap()),
                labels: Labels::try_from(labels).unwrap(),
                delete_protection,
                power: if stopped { Power::Stopped } else { Power::Running },
                ..InstanceSpec::new(if local { PlatformName::Local } else { PlatformName::Kubernetes }, version.parse().unwrap())
            };
            Instance { name, namespace, spec: Json(spec), ..running() }
        },
    )
}

proptest! {
    /// What a running instance looks like as a document changes nothing, and an editor finds nothing wrong.
    #[test]
    fn the_document_of_an_instance_is_what_is_there(instance in instances()) {
        let document = InstanceManifest::from(&instance);
        let known = Known { instance: &instance, at_work: None, same_password: true, has_drifted: false };
        let Planned { plan, spec, .. } = plan(&known, &Request::check(&document).unwrap()).unwrap();
        prop_assert_eq!(plan.action, PlanAction::None, "{:?}", plan);
        prop_assert_eq!(&spec, &instance.spec.0);
        let json = serde_json::to_value(&document).unwrap();
        prop_assert!(crate::api::instances::manifest::tests::validator().is_valid(&json), "{}", json);
    }
}
