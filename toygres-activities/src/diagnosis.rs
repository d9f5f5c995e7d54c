//! Why an instance isn't what it should be: the likely cause, and what to do, from what is known of it.
//!
//! `RULES` is the table of what people meet. It is matched against the words of the platform and the SQLSTATEs of
//! PostgreSQL's log, the nearest to the failure first; the more particular rules go before the general ones.
//! Nothing in here asks anybody.

use std::collections::HashSet;

use toygres_models::{
    Cause, Failure, FailureKind, HealthReason, HealthReasonKind, InstanceKey, InstanceState, Namespace, PlatformName, Verdict,
};

use crate::server_log::{Line, without_process};

/// What the platform saw of the instance a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It answers SQL.
    Ready,
    /// It doesn't, for that reason.
    NotReady(Failure),
    /// Nothing of it is there.
    Gone,
    /// It can't be looked at.
    Unknown(Failure),
}

/// How a log-in with the password that toygres keeps went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogIn {
    /// Nobody tried: there is nothing to log in to.
    NotTried,
    /// It works.
    Works,
    /// It doesn't.
    Failed(Failure),
}

/// What is known of an instance.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The instance.
    pub key: &'a InstanceKey,
    /// Where it runs.
    pub platform: PlatformName,
    /// Its state on record.
    pub state: InstanceState,
    /// Whether its server never ran, so that there is no data to lose.
    pub never_ran: bool,
    /// Why it, or its last operation, failed, if it did.
    pub failure: Option<&'a Failure>,
    /// What was seen of it.
    pub seen: Seen,
    /// How a log-in went.
    pub log_in: LogIn,
    /// What was told of it since it was last well, oldest first.
    pub events: &'a [String],
    /// What its server said of trouble, oldest first.
    pub log: &'a [String],
    /// What a probe of its server found amiss.
    pub reasons: &'a [HealthReason],
}

struct Rule {
    cause: Cause,
    /// The platform says any of these, in lower case.
    says: &'static [&'static str],
    /// Or PostgreSQL's log has a line like that.
    logged: fn(&Line<'_>) -> bool,
    /// Or the failure is of one of these kinds.
    kinds: &'static [FailureKind],
    /// Whether it is enough that somebody says so: PostgreSQL's log, a pod's events. If not, the failure
    /// itself has to: such words are said by anybody who tries a log-in, or on the way to what works.
    by_anybody: bool,
}

const fn anybody_says(cause: Cause, says: &'static [&'static str]) -> Rule {
    Rule { cause, says, logged: |_| false, kinds: &[], by_anybody: true }
}

const fn logged(cause: Cause, logged: fn(&Line<'_>) -> bool, says: &'static [&'static str]) -> Rule {
    Rule { logged, ..anybody_says(cause, says) }
}

const fn failure_says(cause: Cause, says: &'static [&'static str]) -> Rule {
    Rule { by_anybody: false, ..anybody_says(cause, says) }
}

const fn of_kind(cause: Cause, kinds: &'static [FailureKind]) -> Rule {
    Rule { kinds, ..failure_says(cause, &[]) }
}

/// By their words, particular ones first.
const RULES: &[Rule] = &[
    logged(Cause::DiskFull, |line| line.code == "53100", &["no space left on device", "disk quota exceeded", "disk is full"]),
    anybody_says(Cause::PortTaken, &["another program has its port"]),
    anybody_says(Cause::PortsUsedUp, &["all ports from"]),
    failure_says(
        Cause::BadImage,
        &["can't be pulled", "errimagepull", "imagepullbackoff", "invalidimagename", "errimageneverpull", "manifest unknown"],
    ),
    failure_says(Cause::ExtensionUnavailable, &["isn't in this build of postgresql"]),
    failure_says(Cause::QuotaExceeded, &["exceeded quota"]),
    failure_says(
        Cause::VolumeUnavailable,
        &[
            "unbound immediate persistentvolumeclaims",
            "no default storageclass",
            "storageclass.storage.k8s.io",
            "choose another storageclass",
            "gives no sign of life",
        ],
    ),
    failure_says(
        Cause::NoRoom,
        &["insufficient cpu", "insufficient memory", "insufficient ephemeral-storage", "no node can take the pod"],
    ),
    logged(Cause::OutOfMemory, |line| line.code == "53200", &["oomkilled", "more memory than its limit"]),
    logged(
        Cause::ReadOnlyDisk,
        // PostgreSQL has one SQLSTATE for what is forbidden and what can't be written to; the rest is the C library's.
        |line| line.code == "42501" && line.words.ends_with(": Read-only file system"),
        &["read-only file system"],
    ),
    failure_says(Cause::WrongPassword, &["password authentication failed"]),
    failure_says(Cause::TooManyConnections, &["too many clients already", "remaining connection slots are reserved"]),
    failure_says(Cause::Unresponsive, &["has not answered"]),
    failure_says(Cause::LockedOut, &["lets toygres in no more"]),
    failure_says(Cause::PasswordMissing, &["no password is kept"]),
    failure_says(Cause::ProgramsUnavailable, &["programs are damaged", "is mounted noexec"]),
    failure_says(Cause::PartsMissing, &["its data is intact", "lacks what it mounts"]),
    failure_says(Cause::DataMissing, &["is gone: somebody", "is gone or broken", "its data with it"]),
];

/// Where no particular one holds; the first one also of what is still coming up.
const GENERAL_RULES: &[Rule] = &[
    anybody_says(
        Cause::CrashLoop,
        &["ends whenever it is started", "crashloopbackoff", "did not start", "ended while it started", "is postgresql"],
    ),
    of_kind(Cause::ProgramsUnavailable, &[FailureKind::ProgramsUnavailable]),
    of_kind(Cause::GivenUp, &[FailureKind::Cancelled, FailureKind::Superseded]),
    of_kind(Cause::Unreachable, &[FailureKind::ConnectionFailed]),
    of_kind(Cause::CrashLoop, &[FailureKind::StartFailed]),
];

/// Something that speaks of the trouble.
struct Witness<'a> {
    /// The failure itself: its kind, where it won't pass by itself.
    failure: Option<Option<FailureKind>>,
    words: Vec<&'a str>,
}

impl<'a> Witness<'a> {
    /// A failure, and the words that were found with it.
    fn of(failure: &'a Failure) -> [Self; 2] {
        let kind = Some(failure.kind).filter(|_| !failure.retryable);
        [
            Self { failure: Some(kind), words: vec![&failure.message] },
            Self { failure: None, words: failure.evidence.iter().map(String::as_str).collect() },
        ]
    }

    /// Anybody's words, of which the newest are the nearest.
    fn anybody(oldest_first: &'a [String]) -> Self {
        Self { failure: None, words: oldest_first.iter().rev().map(String::as_str).collect() }
    }

    /// The words that make the rule hold, if it does.
    fn supports(&self, rule: &Rule) -> Option<Vec<String>> {
        if self.failure.is_none() && !rule.by_anybody {
            return None;
        }
        let matches = |words: &&&str| match Line::parse(words) {
            Some(line) => (rule.logged)(&line),
            None => {
                let words = words.to_lowercase();
                rule.says.iter().any(|says| words.contains(says))
            }
        };
        let matching: Vec<String> = self.words.iter().filter(matches).map(|words| (*words).to_owned()).collect();
        if !matching.is_empty() {
            return Some(matching);
        }
        let is_kind = self.failure.flatten().is_some_and(|kind| rule.kinds.contains(&kind));
        is_kind.then(|| self.words.iter().map(|words| (*words).to_owned()).collect())
    }
}

/// The likely cause of an instance's trouble.
#[must_use]
pub fn diagnose(facts: &Facts<'_>) -> Verdict {
    let key = facts.key;
    if facts.state == InstanceState::Deleted {
        return well(match facts.never_ran {
            true => format!("{key} was cancelled or deleted before it was ready, and nothing of it is left"),
            false => format!("{key} was deleted"),
        });
    }
    if facts.state == InstanceState::Stopped && facts.failure.is_none() {
        let start = format!("start it: `toygres start {}{}`", key.name, Namespace::flag(key.namespace.as_str()));
        return Verdict { fix: vec![start], ..well(format!("{key} is stopped")) };
    }
    if let LogIn::Failed(failure) = &facts.log_in {
        let found = find(RULES, &Witness::of(failure));
        let (cause, evidence) = found.unwrap_or((Cause::Unreachable, vec![failure.message.clone()]));
        return verdict(facts, cause, evidence);
    }
    let late = facts.failure.is_some_and(passes_with_time);
    if late && facts.state == InstanceState::Failed && facts.seen == Seen::Ready && facts.log_in == LogIn::Works {
        return verdict(facts, Cause::CameUpLate, facts.failure.iter().map(|failure| failure.message.clone()).collect());
    }
    let is_well = facts.state == InstanceState::Running && facts.seen == Seen::Ready;
    if is_well && facts.failure.is_none() {
        if let Some(gravest) = facts.reasons.first() {
            let cause = if gravest.kind == HealthReasonKind::DiskFull { Cause::DiskFull } else { Cause::Degraded };
            return verdict(facts, cause, facts.reasons.iter().map(|reason| reason.message.clone()).collect());
        }
        return well(format!("nothing is wrong with {key}: it runs, and a log-in with the password that toygres keeps works"));
    }
    let witnesses = witnesses(facts, is_well);
    let is_on_its_way = matches!(facts.state, InstanceState::Creating | InstanceState::Deleting) && facts.failure.is_none();
    // What comes up says that it isn't ready yet; by itself that is no trouble.
    let general = if is_on_its_way { &GENERAL_RULES[..1] } else { GENERAL_RULES };
    if let Some((cause, evidence)) = find(RULES, &witnesses).or_else(|| find(general, &witnesses)) {
        return verdict(facts, cause, evidence);
    }
    match (&facts.seen, facts.state) {
        (Seen::Unknown(failure), _) => verdict(facts, Cause::PlatformUnavailable, vec![failure.message.clone()]),
        (Seen::Gone, InstanceState::Running) => verdict(facts, Cause::DataMissing, Vec::new()),
        (_, InstanceState::Creating) if is_on_its_way => well(format!("{key} is still being created")),
        (_, InstanceState::Deleting) if is_on_its_way => well(format!("{key} is being deleted")),
        (Seen::NotReady(failure), _) if facts.failure.is_none() && failure.retryable => {
            let watch = format!("wait a moment, and watch it with `toygres events {} --follow`", key.argument());
            Verdict { fix: vec![watch], ..well(format!("{key} isn't ready at this moment: {}", failure.message)) }
        }
        (Seen::NotReady(failure), _) if facts.failure.is_none() => verdict(facts, Cause::Unknown, vec![failure.message.clone()]),
        _ => verdict(facts, Cause::Unknown, facts.failure.iter().map(|failure| failure.message.clone()).collect()),
    }
}

/// Whether a server may come up after its operation failed by that: it was waited for in vain.
#[must_use]
pub fn passes_with_time(failure: &Failure) -> bool {
    match failure.kind {
        FailureKind::StartFailed | FailureKind::Exhausted | FailureKind::ProgramsUnavailable => true,
        FailureKind::TimedOut => failure.message.contains("was not ready"),
        _ => false,
    }
}

/// The nearest to the trouble first.
fn witnesses<'a>(facts: &'a Facts<'_>, is_well: bool) -> Vec<Witness<'a>> {
    let failure = facts.failure.map(Witness::of).into_iter().flatten();
    let seen = match &facts.seen {
        Seen::NotReady(failure) => Some(Witness::of(failure)),
        Seen::Ready | Seen::Gone | Seen::Unknown(_) => None,
    };
    let seen = seen.into_iter().flatten();
    // What was found at the end of the operation that failed tells more than what is there now.
    let mut witnesses: Vec<_> = match facts.state {
        InstanceState::Failed => failure.chain(seen).collect(),
        _ => seen.chain(failure).collect(),
    };
    if !is_well {
        witnesses.extend([Witness::anybody(facts.events), Witness::anybody(facts.log)]);
    }
    witnesses
}

fn find(rules: &[Rule], witnesses: &[Witness<'_>]) -> Option<(Cause, Vec<String>)> {
    witnesses.iter().find_map(|witness| rules.iter().find_map(|rule| Some((rule.cause, witness.supports(rule)?))))
}

fn well(summary: String) -> Verdict {
    Verdict { summary, likely_cause: None, fix: Vec::new(), evidence: Vec::new() }
}

fn verdict(facts: &Facts<'_>, cause: Cause, mut evidence: Vec<String>) -> Verdict {
    if cause == Cause::CrashLoop {
        // What it ended with.
        let grave = |line: &&String| Line::parse(line).is_some_and(|line| line.is_fatal());
        let mut last_lines: Vec<_> = facts.log.iter().rev().filter(grave).take(2).cloned().collect();
        last_lines.reverse();
        evidence.extend(last_lines);
    }
    // A server that can't start says the same each time.
    let mut lines = HashSet::new();
    evidence.retain(|line| lines.insert(without_process(line).to_owned()));
    evidence.truncate(5);
    let key = facts.key;
    let what = match cause {
        Cause::DiskFull => "the disk is full",
        Cause::PortTaken => "its port is taken by another program",
        Cause::PortsUsedUp => "all ports of the server's range are taken",
        Cause::BadImage => "its image can't be pulled",
        Cause::ExtensionUnavailable => "its build of PostgreSQL lacks an extension that its spec names",
        Cause::QuotaExceeded => "the quota of its Kubernetes namespace is used up",
        Cause::VolumeUnavailable => "its volume can't be had",
        Cause::NoRoom => "no node of the cluster has room for it",
        Cause::OutOfMemory => "its server had not enough memory",
        Cause::ReadOnlyDisk => "its disk can't be written to",
        Cause::WrongPassword => "its server doesn't take the password that toygres keeps: somebody changed one of the two",
        Cause::PasswordMissing => "the password that toygres kept for it is gone",
        Cause::TooManyConnections => "all of its connections are taken",
        Cause::LockedOut => "one of its superusers took toygres's log-in away",
        Cause::PartsMissing => "something around its data was removed",
        Cause::DataMissing => "its data was removed",
        Cause::ProgramsUnavailable => "its PostgreSQL programs can't be had",
        Cause::CrashLoop => "its server ends whenever it is started",
        Cause::GivenUp => "its creation was given up, as somebody asked for",
        Cause::Unresponsive => "its server runs, and doesn't answer",
        Cause::Degraded => "something has to be seen to",
        Cause::CameUpLate => "its server came up after that, and answers",
        Cause::Unreachable => "it can't be reached from the server of toygres",
        Cause::PlatformUnavailable => "its platform can't be asked now",
        Cause::Unknown => "none of the causes that toygres knows",
    };
    let how = match facts.state {
        InstanceState::Failed => "failed",
        InstanceState::Creating => "is still being created, and has trouble",
        InstanceState::Deleting => "is being deleted, and has trouble",
        InstanceState::Running if facts.seen == Seen::Ready && facts.failure.is_some() => "runs, but its last operation failed",
        InstanceState::Running if facts.seen == Seen::Ready && cause == Cause::Degraded => "runs",
        InstanceState::Running if facts.seen == Seen::Ready => "runs, but can't be used",
        InstanceState::Stopped => "is stopped, and its last operation failed",
        InstanceState::Running | InstanceState::Deleted => "doesn't work",
    };
    Verdict { summary: format!("{key} {how}: {what}"), likely_cause: Some(cause), fix: fix(facts, cause), evidence }
}

/// What to do. Commands that need the instance's namespace name it.
fn fix(facts: &Facts<'_>, cause: Cause) -> Vec<String> {
    let name = &facts.key.name;
    let namespace = &facts.key.namespace;
    let flag = Namespace::flag(facts.key.namespace.as_str());
    let in_cluster = facts.platform == PlatformName::Kubernetes;
    let again = |change: &str| match facts.state {
        // Only such a one may be deleted without a loss.
        InstanceState::Failed if facts.never_ran && !change.is_empty() => {
            format!("then delete it, which never held any data (`toygres delete {name}{flag}`), and create it again{change}")
        }
        InstanceState::Failed => format!("then try it again: `toygres start {name}{flag}`"),
        _ => format!("then it comes back by itself; watch it with `toygres events {name}{flag} --follow`"),
    };
    let steps: Vec<String> = match cause {
        Cause::DiskFull if in_cluster => vec![
            format!(
                "look how full it is: `kubectl -n {namespace} exec {name}-0 -- df -h`; if the node is full, free room there \
                 (images, logs)"
            ),
            "a volume that is full has to grow: `kubectl edit persistentvolumeclaim`, where its StorageClass allows that".into(),
            again(" with more --storage"),
        ],
        Cause::DiskFull => vec!["free some room on the disk that the evidence names (`df -h`)".into(), again("")],
        Cause::PortTaken => {
            vec!["find the program that has the port (`ss -ltnp`) and stop it".into(), again("")]
        }
        Cause::PortsUsedUp => vec![
            "delete an instance that isn't needed, or start the server of toygres with a wider --port-range".into(),
            again(""),
        ],
        Cause::BadImage => vec![
            format!(
                "see which versions have an image: `toygres versions --platform kubernetes`; try it by hand: `kubectl -n {namespace} describe pod {name}-0`"
            ),
            "correct --images or --image-repository of the server, or give the nodes access to the registry".into(),
            again(" with a --version that there is"),
        ],
        Cause::QuotaExceeded => vec![
            format!(
                "see what is used: `kubectl -n {namespace} describe resourcequota`; delete what isn't needed, or have it raised"
            ),
            again(""),
        ],
        Cause::VolumeUnavailable => vec![
            "see the classes that there are: `kubectl get storageclass`; and whether their provisioner runs".into(),
            again(" with --storage-class"),
        ],
        Cause::NoRoom => vec![
            "see what the nodes have left: `kubectl describe nodes`; add a node, or delete what isn't needed".into(),
            again(" with less --cpu and --memory"),
        ],
        Cause::OutOfMemory if in_cluster => vec![again(" with more --memory")],
        Cause::OutOfMemory => {
            vec!["see what uses the machine's memory (`free -h`), and stop what isn't needed".into(), again("")]
        }
        Cause::ReadOnlyDisk => {
            vec!["see why the disk is read-only (`dmesg`), and mount it so that it can be written to".into(), again("")]
        }
        Cause::WrongPassword if facts.state == InstanceState::Failed => {
            vec!["find out who changed it while the instance was being created".into(), again("")]
        }
        Cause::WrongPassword => {
            vec![format!("have a new one made, which toygres then knows: `toygres rotate-password {name}{flag}`")]
        }
        Cause::PasswordMissing => vec![
            "put it back from a backup".into(),
            format!("or have a new one made, with the data as it is: `toygres rotate-password {name}{flag}`"),
        ],
        Cause::TooManyConnections => vec![
            "have clients close connections that they don't use, or put a pooler before the instance (`max_connections` is the limit)"
                .into(),
            again(""),
        ],
        Cause::LockedOut => vec!["have one of its superusers carry out the statement in the evidence".into(), again("")],
        Cause::PartsMissing => vec![format!(
            "its data is intact: `toygres start {name}{flag}` makes again what is gone, and so does toygres by itself in a moment"
        )],
        Cause::DataMissing => vec![
            "put back what was removed, if there is a copy; toygres makes no data anew over lost data".into(),
            format!("where there is none, nothing can be lost any more: `toygres delete {name}{flag}` frees the name"),
        ],
        Cause::ProgramsUnavailable => {
            vec!["see what is missing: `toygres doctor`, and `toygres versions`".into(), again(" with a --version that there is")]
        }
        Cause::ExtensionUnavailable => vec![
            format!("take it out of the spec: `toygres extension remove {name}{flag} EXTENSION`"),
            "or have it run on a build that has it: `toygres versions`".into(),
        ],
        Cause::CrashLoop => vec![
            format!("read what its server says: `toygres logs {name}{flag}`; the last FATAL or PANIC names the file or setting"),
            "mend that; only where it says that data is damaged, put the data back from a backup".into(),
            again(""),
        ],
        Cause::GivenUp => vec![format!("nothing has to be done; what is left is cleared away by `toygres delete {name}{flag}`")],
        Cause::Degraded => vec![format!("see to it; `toygres health {name}{flag}` says when it is well again")],
        Cause::Unresponsive => vec![
            "see whether the machine is overloaded (`top`), waits for its disk, or somebody stopped the server's process (state T \
             in `ps`)"
                .into(),
            format!("if nothing helps, restart it: `toygres restart {name}{flag}`"),
        ],
        Cause::CameUpLate => vec![format!("take it up as it is: `toygres start {name}{flag}`")],
        Cause::Unreachable => vec![
            "see whether a firewall or a network policy lies between the server of toygres and the instance".into(),
            format!("try it yourself: `toygres psql {name}{flag}`"),
        ],
        Cause::PlatformUnavailable => {
            vec!["see what is wrong with it: `toygres doctor`; the instance itself may well run".into()]
        }
        Cause::Unknown => vec![
            format!("read the timeline, and what its server says: `toygres logs {name}{flag}`"),
            "the server of toygres's own log (`server.log` in its state directory) may say more".into(),
        ],
    };
    steps
}

#[cfg(test)]
mod tests;
