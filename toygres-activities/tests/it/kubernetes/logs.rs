//! Logs on Kubernetes: followed from container to container, from pod to pod, and over a broken cable.
//! Runs where `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use futures::TryStreamExt;
use toygres_activities::platform::{LogLine, LogRequest, Platform};

use crate::support::kubernetes::Kubernetes;
use crate::support::kubernetes::proxy::Proxy;
use crate::support::{self, READY, Subject, say, until};

fn said(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().filter_map(|line| Some(line.text.split_once("LOG:  said ")?.1)).collect()
}

/// Its server ends, and is there again: the kubelet takes its time for the second and the third.
async fn falls_and_returns(subject: &Kubernetes) {
    let status = |field: &str| {
        let path = format!("jsonpath={{.status.containerStatuses[0].{field}}}");
        subject.kubectl(&["get", "pod", "demo-0", "-o", &path])
    };
    let before: u32 = status("restartCount").parse().unwrap();
    subject.fell("demo");
    support::eventually_within(READY, "it returns", || async {
        status("restartCount").parse::<u32>().unwrap() != before && status("ready") == "true"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn following_goes_on_whatever_ends_but_the_instance() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let proxy = Proxy::plain().await;
    let platform = subject.platform_on(subject.by_way_of(&proxy)).await;
    let key = subject.real_key("demo");
    platform.ensure(&subject.real_spec("demo")).await.unwrap();
    let follow = LogRequest { follow: true, ..LogRequest::default() };
    let mut followed = platform.logs(&key, follow.clone()).await.unwrap();
    let (mut lines, mut words) = (Vec::new(), Vec::new());
    for (number, event) in
        ["nothing", "cable", "crash", "pod", "crash and cable", "pod", "crash after crash", "cable", "pod"].iter().enumerate()
    {
        match *event {
            "cable" => proxy.cut(),
            "crash" => falls_and_returns(&subject).await,
            "crash and cable" => {
                subject.fell("demo");
                proxy.cut();
            }
            "crash after crash" => {
                falls_and_returns(&subject).await;
                say(&subject, "demo", "said between").await;
                words.push("between".to_owned());
                falls_and_returns(&subject).await;
            }
            "pod" => drop(subject.kubectl(&["delete", "pod", "demo-0"])),
            _ => {}
        }
        for _ in 0..5 {
            words.push(format!("{number} {event} {}", words.len()));
            say(&subject, "demo", &format!("said {}", words.last().unwrap())).await;
        }
        lines.extend(until(&mut followed, words.last().unwrap()).await);
        assert_eq!(said(&lines), words, "after {event}");
        eprintln!("{event}: {} lines, each once", lines.len());
    }
    // Of a pod that is gone, nothing is left to be told: its successor's log is told whole.
    let gone = lines.iter().find(|line| line.text.ends_with(&words[0])).unwrap().position.clone();
    let rest = platform.logs(&key, LogRequest { after: gone, ..LogRequest::default() }).await.unwrap();
    assert_eq!(said(&rest.try_collect::<Vec<_>>().await.unwrap()), words[words.len() - 5..]);

    // While there is no pod: the instance is deleted.
    subject.kubectl(&["scale", "statefulset/demo", "--replicas=0"]);
    subject.kubectl(&["wait", "pod/demo-0", "--for=delete", "--timeout=60s"]);
    assert!(platform.logs(&key, LogRequest::tail(5)).await.unwrap().try_collect::<Vec<_>>().await.unwrap().is_empty());
    assert!(platform.remove(&key).await.unwrap());
    let last_words = tokio::time::timeout(READY, followed.try_collect::<Vec<_>>()).await.expect("an end").unwrap();
    assert!(last_words.iter().any(|line| line.text.ends_with("database system is shut down")), "{last_words:#?}");
}
