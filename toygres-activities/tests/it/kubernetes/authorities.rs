//! A CA that comes to its end, on a cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use toygres_activities::platform::Platform;
use toygres_activities::platform::kubernetes::KubernetesPlatform;

use crate::support::kubernetes::Kubernetes;
use crate::support::{Subject, ask, key, secret, spec};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Writes the CAs with these keys as they are when they have so long to live.
fn write(folder: &Path, keys: &[(&str, KeyPair)], left: Duration) {
    for (name, key) in keys {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, *name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (SystemTime::now() - DAY * 365).into();
        params.not_after = (SystemTime::now() + left).into();
        std::fs::write(folder.join(format!("{name}.crt")), params.self_signed(key).unwrap().pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_is_followed_by_another_wherever_it_is_trusted() {
    let keys = ["ca", "client-ca"].map(|name| (name, KeyPair::generate().unwrap()));
    let prepare = |config: toygres_activities::platform::kubernetes::KubernetesConfig| {
        write(&config.ca_dir, &keys, DAY * 3 * 365);
        config
    };
    let Some(subject) = Kubernetes::with("17", prepare).await else { return };
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    assert_eq!(subject.platform.renew_certificates().await.unwrap(), 0, "its CA has three years left");

    write(&subject.config.ca_dir, &keys, DAY * 30);
    let second = KubernetesPlatform::connect(subject.config.clone()).await.unwrap();
    let trusted = |object: &str, entry: &str, decode: &str| {
        let template = format!("go-template={{{{index .data \"{entry}\"{decode}}}}}");
        subject.kubectl(&["get", object, "-o", &template]).matches("BEGIN CERTIFICATE").count()
    };
    assert_eq!(trusted("secret/demo-connection", "ca.crt", " | base64decode"), 1);
    // Its log-in is signed by the successor, of which the instance hasn't heard.
    second.set_password(&subject.real_key("demo"), &secret("another")).await.unwrap();
    assert_eq!(second.renew_certificates().await.unwrap(), 1);
    assert_eq!(second.renew_certificates().await.unwrap(), 0, "it is done");
    assert_eq!(trusted("secret/demo-connection", "ca.crt", " | base64decode"), 2);
    assert_eq!(trusted("configmap/demo-config", "client-ca.crt", ""), 2);
    // What trusts only the first gets in as before, whichever certificate the server presents by now.
    subject.platform.set_password(&subject.real_key("demo"), &spec(&subject, "demo").password).await.unwrap();
    assert_eq!(ask(&subject, "demo", "SELECT 'x'").await, "x");
    assert!(subject.platform().remove(&key("demo")).await.unwrap());
}
