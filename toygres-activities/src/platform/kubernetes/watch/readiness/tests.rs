use serde_json::{Value, json};

use super::*;

fn key() -> InstanceKey {
    InstanceKey::parse("default", "demo").unwrap()
}

fn of<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// An instance whose pod has this status.
fn with_pod(status: Value) -> Objects {
    Objects { pod: Some(of(json!({"metadata": {"name": "demo-0"}, "status": status}))), ..without_pod() }
}

fn without_pod() -> Objects {
    Objects {
        set: Some(of(json!({"metadata": {"name": "demo"}, "spec": {"selector": {}, "template": {}}}))),
        claim: Some(claim("Bound", "standard")),
        pod: None,
        events: Vec::new(),
    }
}

fn claim(phase: &str, class: &str) -> PersistentVolumeClaim {
    of(json!({"metadata": {"name": "demo-data"}, "spec": {"storageClassName": class}, "status": {"phase": phase}}))
}

fn event(kind: &str, reason: &str, message: &str) -> Event {
    of(json!({"metadata": {}, "involvedObject": {"kind": kind, "name": "demo"}, "reason": reason, "message": message}))
}

fn waiting(reason: &str, message: &str) -> Objects {
    with_pod(json!({"containerStatuses": [{
        "name": "postgres", "image": "postgres:17", "imageID": "", "ready": false, "restartCount": 2,
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
    }]}))
}

fn unscheduled(message: &str) -> Objects {
    with_pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}))
}

#[track_caller]
fn hopeless(seen: &Objects) -> Failure {
    match seen.readiness(&key()) {
        Readiness::Failed(failure) | Readiness::Crashing(failure) => {
            assert!(!failure.retryable);
            failure
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn doubtful(seen: &Objects) -> Failure {
    match seen.readiness(&key()) {
        Readiness::Stalled(failure) | Readiness::Delayed(failure, _) => failure,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn waits(seen: &Objects) -> Failure {
    match seen.readiness(&key()) {
        Readiness::Waiting(_, failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_image_that_is_not_there_is_hopeless_and_a_registry_that_stumbles_is_not() {
    let failure = hopeless(&waiting("ErrImagePull", "failed to resolve reference \"x\": docker.io/library/x: not found"));
    assert_eq!(failure.kind, FailureKind::ProgramsUnavailable);
    hopeless(&waiting("InvalidImageName", "Failed to apply default image tag"));
    doubtful(&waiting("ErrImagePull", "dial tcp: i/o timeout"));
    for (words, is_hopeless) in [
        ("no such host", false),
        ("429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit", false),
        ("unexpected status code 503 Service Unavailable", false),
        ("manifest unknown", true),
    ] {
        let mut backing_off = waiting("ImagePullBackOff", "Back-off pulling image \"x\"");
        backing_off.events.push(event("Pod", "Failed", &format!("Failed to pull image \"x\": {words}")));
        let failure = if is_hopeless { hopeless(&backing_off) } else { doubtful(&backing_off) };
        assert!(failure.message.contains(words), "the registry's words, not the kubelet's: {failure}");
        assert!(failure.evidence.iter().any(|line| line.contains(words)));
    }
}

#[test]
fn a_crashing_server_is_told_from_a_starting_one() {
    let failure = hopeless(&waiting("CrashLoopBackOff", "back-off 10s restarting failed container"));
    assert!(failure.message.contains("exit code 1"), "{failure}");
    waits(&waiting("ContainerCreating", ""));
    let running = json!({"containerStatuses": [{
        "name": "postgres", "image": "i", "imageID": "", "ready": false, "started": false, "restartCount": 0,
        "state": {"running": {}},
    }]});
    assert!(waits(&with_pod(running)).message.contains("starts or recovers"));
}

#[test]
fn no_room_is_doubtful_and_an_unbound_volume_is_the_volumes_matter() {
    let failure = doubtful(&unscheduled("0/1 nodes are available: 1 Insufficient cpu."));
    assert!(failure.kind == FailureKind::Exhausted && failure.message.contains("Insufficient cpu"), "{failure}");
    let mut seen = unscheduled("pod has unbound immediate PersistentVolumeClaims.");
    seen.claim = Some(claim("Pending", "standard"));
    waits(&seen);
    seen.events.push(event("PersistentVolumeClaim", "ProvisioningFailed", "storageclass.storage.k8s.io \"x\" not found"));
    assert!(hopeless(&seen).message.contains("\"x\" not found"));
    seen.claim = Some(claim("Pending", ""));
    assert!(doubtful(&seen).message.contains("no default StorageClass"));
    // The scheduler hasn't looked at the pod since.
    seen.claim = Some(claim("Bound", "standard"));
    waits(&seen);
}

#[test]
fn a_provisioner_that_never_begins_is_doubtful_and_a_slow_one_is_not() {
    let mut seen = unscheduled("pod has unbound immediate PersistentVolumeClaims.");
    seen.claim = Some(claim("Pending", "fast"));
    let mut waiting = event("PersistentVolumeClaim", "ExternalProvisioning", "Waiting for a volume to be created by 'x'");
    waiting.first_timestamp = Some(of(json!("2026-01-01T00:00:00Z")));
    waiting.last_timestamp = Some(of(json!("2026-01-01T00:00:19Z")));
    seen.events.push(waiting.clone());
    waits(&seen);
    waiting.last_timestamp = Some(of(json!("2026-01-01T00:00:34Z")));
    seen.events = vec![waiting];
    let failure = doubtful(&seen);
    assert!(failure.message.contains("created by 'x'") && failure.message.contains("fast"), "{failure}");
    seen.events.insert(0, event("PersistentVolumeClaim", "Provisioning", "External provisioner is provisioning volume"));
    waits(&seen);
}

#[test]
fn a_pod_that_may_not_be_made_is_hopeless() {
    let mut seen = without_pod();
    waits(&seen);
    seen.events.push(event("StatefulSet", "FailedCreate", "pods \"demo-0\" is forbidden: exceeded quota: q"));
    assert_eq!(hopeless(&seen).kind, FailureKind::Exhausted);
    seen.events = vec![event("StatefulSet", "FailedCreate", "violates PodSecurity: is forbidden")];
    assert_eq!(hopeless(&seen).kind, FailureKind::StartFailed);
}

#[test]
fn what_somebody_deleted_is_named() {
    assert_eq!(Objects::default().readiness(&key()), Readiness::Absent);
    let lost = Objects { claim: None, ..without_pod() };
    assert!(doubtful(&lost).message.contains("demo-data"));
    let half = Objects { set: None, ..without_pod() };
    assert!(doubtful(&half).message.contains("its data is intact"));
    let gone = Objects { set: None, claim: None, ..with_pod(json!({})) };
    assert!(doubtful(&gone).message.contains("its data with them"));
    let mut mount = waiting("ContainerCreating", "");
    mount.events.push(event("Pod", "FailedMount", "MountVolume.SetUp failed for volume \"tls\" : secret \"demo-tls\" not found"));
    assert!(doubtful(&mount).message.contains("demo-tls"));
}

#[test]
fn a_ready_pod_is_ready_unless_it_ends() {
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let mut seen = with_pod(ready);
    assert_eq!(seen.readiness(&key()), Readiness::Ready);
    let now = of(json!("2026-01-01T00:00:00Z"));
    seen.pod.as_mut().unwrap().metadata.deletion_timestamp = Some(now);
    waits(&seen);
}
