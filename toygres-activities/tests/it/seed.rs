//! The crate as the one that others were promised: names, module paths, struct literals with exactly these fields, and
//! errors that `?` turns into another crate's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use duroxide::runtime::registry::ActivityRegistry;
use toygres_activities::k8s_client::{check_resources_exist, get_k8s_client};
use toygres_activities::types::{
    DeletePostgresInput, DeletePostgresOutput, DeployPostgresInput, DeployPostgresOutput, GetConnectionStringsInput,
    GetConnectionStringsOutput, TestConnectionInput, TestConnectionOutput, UpdateMetadataInput, UpdateMetadataOutput,
    WaitForReadyInput, WaitForReadyOutput,
};
use uuid::Uuid;

use crate::support::kubernetes::{Kubernetes, is_wanted};
use crate::support::{Subject, spec};

#[test]
fn every_type_is_exactly_its_fields() {
    let text = || "x".to_owned();
    let _ = DeployPostgresInput {
        namespace: text(),
        instance_name: text(),
        password: text(),
        postgres_version: text(),
        storage_size_gb: 10_i32,
        use_load_balancer: false,
        dns_label: Some(text()),
    };
    let _ = DeployPostgresOutput { instance_name: text(), namespace: text(), created: true };
    let _ = DeletePostgresInput { namespace: text(), instance_name: text() };
    let _ = DeletePostgresOutput { deleted: true };
    let _ = WaitForReadyInput { namespace: text(), instance_name: text(), timeout_seconds: 300_u64 };
    let _ = WaitForReadyOutput { pod_phase: text(), ready_after_seconds: 1_u64 };
    let _ = GetConnectionStringsInput {
        namespace: text(),
        instance_name: text(),
        password: text(),
        use_load_balancer: true,
        dns_label: None,
    };
    let _ = GetConnectionStringsOutput {
        ip_connection_string: text(),
        dns_connection_string: None,
        external_ip: None,
        dns_name: None,
    };
    let _ = TestConnectionInput { connection_string: text() };
    let _ = TestConnectionOutput { version: text(), connected: true };
    let _ = UpdateMetadataInput {
        instance_id: Uuid::nil(),
        instance_name: text(),
        state: text(),
        health_status: None,
        ip_connection_string: None,
        dns_connection_string: None,
        health_check_orchestration_id: None,
    };
    let _ = UpdateMetadataOutput { instance_id: Uuid::nil(), created: true };
    // And re-exported.
    let _: toygres_activities::DeletePostgresOutput = DeletePostgresOutput { deleted: true };
}

#[test]
fn the_registry_has_every_named_activity() {
    use toygres_activities::names::activities;
    let registry: ActivityRegistry = toygres_activities::registry::create_activity_registry();
    for name in [
        activities::DEPLOY_POSTGRES,
        activities::DELETE_POSTGRES,
        activities::WAIT_FOR_READY,
        activities::GET_CONNECTION_STRINGS,
        activities::TEST_CONNECTION,
        activities::UPDATE_METADATA,
    ] {
        assert!(registry.has(name), "{name}");
    }
}

async fn exists(namespace: &str, instance_name: &str) -> anyhow::Result<bool> {
    let client: kube::Client = get_k8s_client().await?;
    Ok(check_resources_exist(&client, namespace, instance_name).await?)
}

#[test]
fn failures_are_errors_for_any_thread() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<toygres_models::Failure>();
    is_error::<toygres_models::Invalid>();
}

#[tokio::test]
async fn a_cluster_that_can_not_be_asked_is_an_error() {
    let nobody = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let failure = check_resources_exist(&nobody, "default", "demo").await.unwrap_err();
    assert!(failure.message.contains("default/demo"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_tells_whether_an_instance_is_there() {
    if !is_wanted() {
        return;
    }
    let subject = Kubernetes::new("17").await.unwrap();
    assert!(!exists(&subject.namespace, "demo").await.unwrap());
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    assert!(exists(&subject.namespace, "demo").await.unwrap());
    subject.platform().remove(&crate::support::key("demo")).await.unwrap();
}
