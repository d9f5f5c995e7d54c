//! What happens to instances without anyone asking for it: servers that end, come back, or don't.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::stream::{SelectAll, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use toygres_models::InstanceKey;

use super::readiness::{condition, container, ended_how};
use crate::platform::PlatformEvent;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{self, MemberNames};

/// What was last known of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    uid: String,
    restarts: i32,
    ready: bool,
    /// It has been ready, and isn't since then.
    down: bool,
    crashing: bool,
    /// Which of the watches shows it.
    place: usize,
}

/// Watches all pods of toygres's until the platform ends.
pub(in crate::platform::kubernetes) async fn watch(cluster: Arc<Cluster>) {
    let mut changes = SelectAll::new();
    for (place, pods) in cluster.places::<Pod>().into_iter().enumerate() {
        let config = watcher::Config::default().labels(identity::ALL);
        changes.push(Box::pin(watcher::watcher(pods, config).default_backoff().map(move |change| (place, change))));
    }
    let mut known: HashMap<InstanceKey, Known> = HashMap::new();
    // What a list that has begun anew has shown so far.
    let mut listed: HashMap<usize, HashSet<InstanceKey>> = HashMap::new();
    loop {
        let change = tokio::select! {
            () = cluster.stop.cancelled() => return,
            change = changes.next() => change,
        };
        let Some((place, change)) = change else { return };
        match change {
            Ok(watcher::Event::Init) => drop(listed.insert(place, HashSet::new())),
            Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => {
                let Some(key) = identity::owner(&pod.metadata) else { continue };
                if let Some(listed) = listed.get_mut(&place) {
                    listed.insert(key.clone());
                }
                // Its end is told when it has come.
                if pod.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                // What a verb does to an instance is an event of the verb.
                let quiet = cluster.is_locked(&key);
                let last = known.entry(key.clone()).or_insert_with(|| Known { place, ..Known::default() });
                let (next, events) = compare(&key, last, &pod);
                // The first pod of an instance is noted by the operation that waits for it.
                if next.ready && !last.ready && (last.down || last.uid != next.uid) {
                    let (cluster, key, pod) = (cluster.clone(), key.clone(), pod.clone());
                    tokio::spawn(async move {
                        let noted = async {
                            let names = MemberNames::first(&key);
                            match cluster.client.ours::<PersistentVolumeClaim>(&key, &names.data).await? {
                                Some(claim) => cluster.pin_image(&key, &pod, &claim).await,
                                None => Ok(()),
                            }
                        };
                        if let Err(failure) = noted.await {
                            tracing::warn!(instance.key = %key, error = %failure, "the image of a pod could not be noted");
                        }
                    });
                }
                *last = next;
                if !quiet {
                    send(&cluster, events);
                }
            }
            Ok(watcher::Event::InitDone) => {
                // What went while the watch was down has no event of its own.
                let listed = listed.remove(&place).unwrap_or_default();
                let gone = |(key, last): &(&InstanceKey, &Known)| last.place == place && !listed.contains(*key);
                let gone: Vec<_> = known.iter().filter(gone).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    went(&cluster, &mut known, key);
                }
            }
            Ok(watcher::Event::Delete(pod)) => {
                if let Some(key) = identity::owner(&pod.metadata) {
                    went(&cluster, &mut known, key);
                }
            }
            Err(error) => tracing::warn!(error = %error, "the watch of the instances' pods was interrupted"),
        }
    }
}

/// A pod is there no more.
fn went(cluster: &Cluster, known: &mut HashMap<InstanceKey, Known>, key: InstanceKey) {
    match known.get_mut(&key).filter(|last| last.ready || last.down) {
        Some(last) if !cluster.is_locked(&key) => {
            (last.ready, last.down) = (false, true);
            let message = format!("the pod of {key} was deleted; its server ended with it");
            send(cluster, vec![PlatformEvent { key, kind: "server_exited", message, healthy: false }]);
        }
        _ => drop(known.remove(&key)),
    }
}

fn send(cluster: &Cluster, events: Vec<PlatformEvent>) {
    for event in events {
        // Nobody may be listening.
        let _ = cluster.events.send(event);
    }
}

/// What changed between two states of a pod.
fn compare(key: &InstanceKey, last: &Known, pod: &Pod) -> (Known, Vec<PlatformEvent>) {
    let status = container(pod);
    let ready = condition(pod, "Ready").is_some_and(|ready| ready.status == "True");
    let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let mut next = Known {
        restarts: status.map_or(0, |status| status.restart_count),
        crashing: waiting == Some("CrashLoopBackOff"),
        ready,
        down: last.down && !ready,
        place: last.place,
        uid,
    };
    let mut events = Vec::new();
    let mut add = |kind, message, healthy| events.push(PlatformEvent { key: key.clone(), kind, message, healthy });
    let is_first = last.uid.is_empty();
    let same_pod = last.uid == next.uid;
    if same_pod && next.restarts > last.restarts {
        let ended = status.and_then(|status| status.last_state.as_ref()?.terminated.as_ref());
        let how = ended.map_or_else(|| "unknown".to_owned(), |ended| ended_how(ended.exit_code, ended.reason.as_deref()));
        add("server_exited", format!("the server of {key} ended: {how}; the kubelet restarts it"), false);
        next.down = !ready;
    }
    if same_pod && next.crashing && !last.crashing {
        add("server_start_failed", format!("the server of {key} ends whenever it is started; see its log"), false);
        next.down = true;
    }
    let came_back = last.down || (same_pod && next.restarts > last.restarts);
    if !is_first && ready && came_back {
        add("server_restarted", format!("the server of {key} answers again"), true);
    }
    (next, events)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, restarts: i32, ready: bool, waiting: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "demo-0", "uid": uid},
            "status": {
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                "containerStatuses": [{
                    "name": "postgres", "image": "i", "imageID": "", "ready": ready, "restartCount": restarts,
                    "state": waiting.map_or(json!({}), |reason| json!({"waiting": {"reason": reason}})),
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                }],
            },
        }))
        .unwrap()
    }

    /// The kinds of the events that a series of states makes.
    fn kinds_of(states: &[Pod]) -> Vec<&'static str> {
        let key = InstanceKey::parse("default", "demo").unwrap();
        let mut known = Known::default();
        let mut kinds = Vec::new();
        for pod in states {
            let (next, events) = compare(&key, &known, pod);
            known = next;
            kinds.extend(events.iter().map(|event| event.kind));
        }
        kinds
    }

    #[test]
    fn no_trouble_makes_no_event() {
        assert!(kinds_of(&[pod("a", 0, false, None), pod("a", 0, true, None), pod("a", 0, true, None)]).is_empty());
        assert!(kinds_of(&[pod("a", 3, true, None)]).is_empty(), "what happened before the watch");
    }

    #[test]
    fn a_server_that_ends_and_comes_back_makes_two_events() {
        let states = [pod("a", 0, true, None), pod("a", 1, false, None), pod("a", 1, false, None), pod("a", 1, true, None)];
        assert_eq!(kinds_of(&states), ["server_exited", "server_restarted"]);
        assert_eq!(kinds_of(&[pod("a", 0, true, None), pod("a", 1, true, None)]), ["server_exited", "server_restarted"]);
    }

    #[test]
    fn a_crash_loop_makes_one_event() {
        let crash = || pod("a", 2, false, Some("CrashLoopBackOff"));
        let states = [pod("a", 1, true, None), pod("a", 2, false, None), crash(), crash(), pod("a", 3, true, None)];
        assert_eq!(kinds_of(&states), ["server_exited", "server_start_failed", "server_exited", "server_restarted"]);
    }
}
