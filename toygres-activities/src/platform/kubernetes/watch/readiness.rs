//! What the cluster's words about an instance mean: is it ready, is it worth waiting, and if not, why.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, PersistentVolumeClaim, Pod, PodCondition};
use toygres_models::{Failure, FailureKind, InstanceKey, Memory};

use crate::platform::Phase;
use crate::platform::kubernetes::identity::MemberNames;
use crate::platform::sizing::Sizing;

/// What was seen of an instance.
#[derive(Debug, Clone, Default)]
pub(in crate::platform::kubernetes) struct Objects {
    pub(in crate::platform::kubernetes) set: Option<StatefulSet>,
    pub(in crate::platform::kubernetes) claim: Option<PersistentVolumeClaim>,
    pub(in crate::platform::kubernetes) pod: Option<Pod>,
    /// Warnings about any of them, and all that is said of the claim, oldest first.
    pub(in crate::platform::kubernetes) events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::platform::kubernetes) enum Readiness {
    /// There is no such instance.
    Absent,
    Ready,
    /// It is stopped, as its StatefulSet says.
    Stopped,
    /// It comes up; with what it does.
    Waiting(Phase, Failure),
    /// It won't come up if this lasts for more than a few seconds.
    Stalled(Failure),
    /// No node can take its pod, or no image has come, since that second of Unix time. An autoscaler may add a node, and a
    /// registry may answer again.
    Delayed(Failure, i64),
    /// Waiting can't help.
    Failed(Failure),
    /// Waiting can't help, and the server's log says why.
    Crashing(Failure),
}

/// What a registry says of an image that isn't there or may not be had.
const NO_SUCH_IMAGE: &[&str] = &[
    "not found",
    "manifest unknown",
    "denied",
    "unauthorized",
    "authorization failed",
    "invalid reference",
    "does not exist",
    "no match for platform",
];

/// How long a provisioner may be silent: replicas of one take over from each other in less.
const PROVISIONER_TIMEOUT_SECONDS: i64 = 30;

impl Objects {
    pub(in crate::platform::kubernetes) fn is_ready(&self) -> bool {
        let ready = |pod: &Pod| condition(pod, "Ready").is_some_and(|ready| ready.status == "True");
        self.set.is_some() && self.pod.as_ref().is_some_and(|pod| ready(pod) && pod.metadata.deletion_timestamp.is_none())
    }

    /// What the pod's container runs: the image with its digest, or else with its id on the node.
    pub(in crate::platform::kubernetes) fn image(&self) -> Option<String> {
        let status = container(self.pod.as_ref()?).filter(|status| !status.image_id.is_empty())?;
        let reference = reference(status);
        let has_digest = reference.contains('@');
        Some(if has_digest { reference.to_owned() } else { format!("{reference} (id {})", status.image_id) })
    }

    /// The settings that are made from the memory that the server may use.
    pub(in crate::platform::kubernetes) fn derived(&self) -> BTreeMap<String, String> {
        let limit = || {
            let container = self.set.as_ref()?.spec.as_ref()?.template.spec.as_ref()?.containers.first()?;
            container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.parse::<Memory>().ok()
        };
        limit().map(|memory| Sizing::of(memory.mebibytes()).settings()).unwrap_or_default()
    }

    pub(in crate::platform::kubernetes) fn readiness(&self, key: &InstanceKey) -> Readiness {
        let names = MemberNames::first(key);
        let Some(set) = &self.set else {
            if self.claim.is_none() && self.pod.is_none() {
                return Readiness::Absent;
            }
            let message = match &self.claim {
                Some(_) => format!("the StatefulSet of {key} is gone, and its data is intact: starting {key} makes it again"),
                None => format!("the StatefulSet and the PersistentVolumeClaim of {key} are gone, and its data with them"),
            };
            return Readiness::Stalled(self.failure(Failure::permanent(FailureKind::Platform, message)));
        };
        if set.metadata.deletion_timestamp.is_some() {
            let message = format!("the StatefulSet of {key} is being deleted");
            return Readiness::Waiting(Phase::Pending, self.failure(Failure::transient(FailureKind::Platform, message)));
        }
        if self.is_ready() {
            return Readiness::Ready;
        }
        if set.spec.as_ref().and_then(|spec| spec.replicas) == Some(0) {
            return match self.pod {
                None => Readiness::Stopped,
                Some(_) => {
                    let message = format!("the server of {key} is being stopped");
                    Readiness::Waiting(Phase::Running, Failure::transient(FailureKind::Platform, message))
                }
            };
        }
        if self.claim.is_none() {
            let message = format!("the PersistentVolumeClaim {} of {key} is gone: somebody deleted it", names.data);
            return Readiness::Stalled(self.failure(Failure::permanent(FailureKind::StartFailed, message)));
        }
        let claim = self.claim_trouble(key);
        match &self.pod {
            None => self.readiness_of_no_pod(key, claim),
            Some(pod) => self.readiness_of_pod(key, pod, claim),
        }
    }

    fn readiness_of_no_pod(&self, key: &InstanceKey, claim: Option<Readiness>) -> Readiness {
        // The StatefulSet's controller says why it can't make the pod.
        if let Some(event) = self.events.iter().rev().find(|event| event.reason.as_deref() == Some("FailedCreate")) {
            let words = event.message.as_deref().unwrap_or_default();
            let kind = if words.contains("quota") { FailureKind::Exhausted } else { FailureKind::StartFailed };
            let message = format!("the pod of {key} can't be made: {words}");
            let failure = self.failure(Failure::permanent(kind, message));
            let lasting = words.contains("forbidden") || words.contains("invalid");
            return if lasting { Readiness::Failed(failure) } else { Readiness::Stalled(failure) };
        }
        claim.unwrap_or_else(|| {
            let message = format!("the pod of {key} is being made");
            Readiness::Waiting(Phase::Pending, self.failure(Failure::transient(FailureKind::StartFailed, message)))
        })
    }

    fn readiness_of_pod(&self, key: &InstanceKey, pod: &Pod, claim: Option<Readiness>) -> Readiness {
        if let Some(scheduled) = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False") {
            let words = scheduled.message.as_deref().unwrap_or_default();
            // Of a claim that isn't bound yet the claim itself knows more.
            if let (true, Some(claim)) = (words.to_lowercase().contains("persistentvolumeclaim"), claim) {
                return claim;
            }
            let message = format!("no node can take the pod of {key}: {words}");
            // The claim is bound since; the scheduler comes back to the pod within seconds.
            let is_bound_since = self.claim.is_some() && words.contains("unbound immediate PersistentVolumeClaims");
            if !is_bound_since && scheduled.reason.as_deref() == Some("Unschedulable") {
                let failure = self.failure(Failure::permanent(FailureKind::Exhausted, message));
                let since = scheduled.last_transition_time.as_ref().map_or(0, |time| time.0.as_second());
                return Readiness::Delayed(failure, since);
            }
            return Readiness::Waiting(Phase::Pending, self.failure(Failure::transient(FailureKind::StartFailed, message)));
        }
        let Some(status) = container(pod) else {
            let message = format!("the pod of {key} is being placed");
            return Readiness::Waiting(Phase::Pending, self.failure(Failure::transient(FailureKind::StartFailed, message)));
        };
        if let Some(waiting) = status.state.as_ref().and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let words = waiting.message.as_deref().unwrap_or_default();
            let since = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(0, |time| time.0.as_second());
            return self.readiness_of_waiting(key, status, (reason, words), since);
        }
        let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        let doing = match ended {
            Some(ended) => format!("its server ended ({}) and is restarted", ended_how(ended.exit_code, ended.reason.as_deref())),
            None if status.started == Some(true) => "its server runs and doesn't answer now".to_owned(),
            None => "its server starts or recovers".to_owned(),
        };
        let failure = self.failure(Failure::transient(FailureKind::StartFailed, format!("{key} isn't ready: {doing}")));
        Readiness::Waiting(Phase::Pending, failure)
    }

    /// `since`: when its pod was given to its node.
    fn readiness_of_waiting(&self, key: &InstanceKey, status: &ContainerStatus, waiting: (&str, &str), since: i64) -> Readiness {
        let image = &status.image;
        let (reason, words) = waiting;
        match reason {
            "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => {
                let words = self.pull_error(words);
                let message = format!("the image {image} of {key} can't be pulled: {words}");
                let failure = self.failure(Failure::permanent(FailureKind::ProgramsUnavailable, message));
                let definite = NO_SUCH_IMAGE.iter().any(|no| words.to_lowercase().contains(no));
                if definite { Readiness::Failed(failure) } else { Readiness::Delayed(failure, since) }
            }
            "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" | "SignatureValidationFailed" => {
                let message = format!("the image {image} of {key} can't be used: {reason}: {words}");
                Readiness::Failed(self.failure(Failure::permanent(FailureKind::ProgramsUnavailable, message)))
            }
            "CrashLoopBackOff" => {
                let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
                let how = last.map_or_else(|| words.to_owned(), |last| ended_how(last.exit_code, last.reason.as_deref()));
                let message = format!("the server of {key} ends whenever it is started: {how}");
                Readiness::Crashing(self.failure(Failure::permanent(FailureKind::StartFailed, message)))
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "PostStartHookError" => {
                let message = format!("the container of {key} can't be started: {words}");
                Readiness::Stalled(self.failure(Failure::permanent(FailureKind::StartFailed, message)))
            }
            _ => {
                // A Secret or ConfigMap that somebody deleted; they are there before the pod is.
                let lacks = |event: &&Event| {
                    let words = event.message.as_deref().unwrap_or_default();
                    event.reason.as_deref() == Some("FailedMount") && words.contains("not found")
                };
                if let Some(event) = self.events.iter().rev().find(lacks) {
                    let words = event.message.as_deref().unwrap_or_default();
                    let message = format!("the pod of {key} lacks what it mounts: {words}");
                    return Readiness::Stalled(self.failure(Failure::permanent(FailureKind::StartFailed, message)));
                }
                let message = format!("the container of {key} is being made ({reason})");
                Readiness::Waiting(Phase::Pending, self.failure(Failure::transient(FailureKind::StartFailed, message)))
            }
        }
    }

    /// The registry's own words: while the kubelet backs off, only the event has them.
    fn pull_error<'a>(&'a self, words: &'a str) -> &'a str {
        let failed = |event: &&Event| {
            event.reason.as_deref() == Some("Failed")
                && event.message.as_deref().is_some_and(|words| words.starts_with("Failed to pull"))
        };
        self.events.iter().rev().find(failed).and_then(|event| event.message.as_deref()).unwrap_or(words)
    }

    /// Why the volume isn't there yet, where it isn't.
    fn claim_trouble(&self, key: &InstanceKey) -> Option<Readiness> {
        let claim = self.claim.as_ref()?;
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        if phase == "Bound" {
            return None;
        }
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).filter(|class| !class.is_empty());
        let Some(class) = class else {
            let message = format!(
                "the volume {name} of {key} can't be made: the cluster has no default StorageClass; choose one (kubectl get storageclass)"
            );
            return Some(Readiness::Stalled(self.failure(Failure::permanent(FailureKind::Platform, message))));
        };
        let is_claims = |event: &&Event| event.involved_object.kind.as_deref() == Some("PersistentVolumeClaim");
        let words = self.events.iter().rev().find(is_claims).and_then(|event| event.message.as_deref());
        Some(match words {
            Some(words) if words.contains("storageclass") && words.contains("not found") => {
                let message = format!(
                    "the volume {name} of {key} can't be made: {words}; choose another StorageClass (kubectl get storageclass)"
                );
                Readiness::Failed(self.failure(Failure::permanent(FailureKind::Platform, message)))
            }
            Some(words) if self.provisioner_is_silent() => {
                let message = format!(
                    "the volume {name} of {key} isn't made: the provisioner of StorageClass {class} gives no sign of life: {words}"
                );
                Readiness::Stalled(self.failure(Failure::permanent(FailureKind::Platform, message)))
            }
            words => {
                let words = words.map(|words| format!(": {words}")).unwrap_or_default();
                let message = format!("the volume {name} of {key} is being made by StorageClass {class}{words}");
                Readiness::Waiting(Phase::Pending, self.failure(Failure::transient(FailureKind::StartFailed, message)))
            }
        })
    }

    /// Whether the cluster has waited in vain for the provisioner to begin, by the cluster's own clock.
    fn provisioner_is_silent(&self) -> bool {
        let of = |reason: &'static str| self.events.iter().filter(move |event| event.reason.as_deref() == Some(reason));
        let seconds = |event: &Event| {
            let (first, last) = (event.first_timestamp.as_ref()?, event.last_timestamp.as_ref()?);
            Some(last.0.as_second() - first.0.as_second())
        };
        // What a provisioner itself says first.
        let begun = of("Provisioning").next().is_some();
        !begun && of("ExternalProvisioning").filter_map(seconds).any(|waited| waited >= PROVISIONER_TIMEOUT_SECONDS)
    }

    /// With the cluster's own words: conditions that don't hold, then events.
    fn failure(&self, failure: Failure) -> Failure {
        let mut evidence = Vec::new();
        let conditions = self.pod.iter().filter_map(|pod| pod.status.as_ref()?.conditions.as_ref()).flatten();
        for condition in conditions.filter(|condition| condition.status != "True" && condition.message.is_some()) {
            evidence.push(format!(
                "pod condition {}={} {}: {}",
                condition.type_,
                condition.status,
                condition.reason.as_deref().unwrap_or_default(),
                condition.message.as_deref().unwrap_or_default()
            ));
        }
        let last = self.events.len().saturating_sub(5);
        evidence.extend(self.events[last..].iter().map(describe));
        // Controllers repeat themselves.
        evidence.dedup();
        failure.with_evidence(evidence)
    }
}

/// An event as one line.
pub(in crate::platform::kubernetes) fn describe(event: &Event) -> String {
    let kind = event.involved_object.kind.as_deref().unwrap_or_default();
    let name = event.involved_object.name.as_deref().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{kind} {name}: {}: {}", text(&event.reason), text(&event.message).trim())
}

pub(in crate::platform::kubernetes) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(in crate::platform::kubernetes) fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// What a container runs: the image by its digest where the node knows one, or else as it was named.
pub(in crate::platform::kubernetes) fn reference(status: &ContainerStatus) -> &str {
    let id = status.image_id.strip_prefix("docker-pullable://").unwrap_or(&status.image_id);
    // Of an image that came from no registry there is an id alone, by which it can't be named.
    if id.contains('@') { id } else { &status.image }
}

pub(in crate::platform::kubernetes) fn ended_how(exit_code: i32, reason: Option<&str>) -> String {
    match reason {
        Some("OOMKilled") => "it used more memory than its limit and was killed".to_owned(),
        // Its program was never begun.
        Some(reason @ ("StartError" | "ContainerCannotRun")) => format!("its program can't be started ({reason})"),
        _ if exit_code > 128 => format!("killed by signal {}", exit_code - 128),
        _ => format!("exit code {exit_code}"),
    }
}

#[cfg(test)]
mod tests;
