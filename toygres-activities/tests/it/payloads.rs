//! What durable histories hold: JSON as the seed's plain structs write it is read, and what is
//! written stays the same. A change of a line below is a break of running workflows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toygres_activities::*;

fn both_ways<T: Serialize + DeserializeOwned + PartialEq + Debug>(json: &str) -> T {
    let value: T = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&value).unwrap(), json);
    assert_eq!(serde_json::from_str::<T>(&serde_json::to_string(&value).unwrap()).unwrap(), value);
    value
}

#[test]
fn deploy_postgres() {
    let input: DeployPostgresInput = both_ways(
        r#"{"namespace":"toygres","instance_name":"demo","password":"p@ss","postgres_version":"18","storage_size_gb":10,"use_load_balancer":true,"dns_label":"demo"}"#,
    );
    assert!(!format!("{input:?}").contains("p@ss"));
    both_ways::<DeployPostgresInput>(
        r#"{"namespace":"toygres","instance_name":"demo","password":"secret://toygres/demo","postgres_version":"18","storage_size_gb":10,"use_load_balancer":false,"dns_label":null}"#,
    );
    both_ways::<DeployPostgresOutput>(r#"{"instance_name":"demo","namespace":"toygres","created":true}"#);
}

#[test]
fn an_optional_field_may_be_left_out() {
    let json = r#"{"namespace":"n","instance_name":"i","password":"p","postgres_version":"18","storage_size_gb":1,"use_load_balancer":false}"#;
    assert_eq!(serde_json::from_str::<DeployPostgresInput>(json).unwrap().dns_label, None);
}

#[test]
fn delete_postgres() {
    both_ways::<DeletePostgresInput>(r#"{"namespace":"toygres","instance_name":"demo"}"#);
    both_ways::<DeletePostgresOutput>(r#"{"deleted":false}"#);
}

#[test]
fn wait_for_ready() {
    both_ways::<WaitForReadyInput>(r#"{"namespace":"toygres","instance_name":"demo","timeout_seconds":300}"#);
    both_ways::<WaitForReadyOutput>(r#"{"pod_phase":"Running","ready_after_seconds":3}"#);
}

#[test]
fn get_connection_strings() {
    let input: GetConnectionStringsInput = both_ways(
        r#"{"namespace":"toygres","instance_name":"demo","password":"p@ss","use_load_balancer":true,"dns_label":"demo"}"#,
    );
    assert!(!format!("{input:?}").contains("p@ss"));
    let output: GetConnectionStringsOutput = both_ways(
        r#"{"ip_connection_string":"postgresql://postgres:p%40ss@10.0.0.1:5432/postgres","dns_connection_string":null,"external_ip":"10.0.0.1","dns_name":null}"#,
    );
    assert!(!format!("{output:?}").contains("p%40ss"));
}

#[test]
fn test_connection() {
    let input: TestConnectionInput = both_ways(r#"{"connection_string":"postgresql://postgres:p@10.0.0.1:5432/postgres"}"#);
    assert!(!format!("{input:?}").contains("postgres:p@"));
    both_ways::<TestConnectionOutput>(r#"{"version":"PostgreSQL 18.1","connected":true}"#);
}

#[test]
fn update_metadata() {
    both_ways::<UpdateMetadataInput>(
        r#"{"instance_id":"00000000-0000-0000-0000-000000000000","instance_name":"demo","state":"running","health_status":"healthy","ip_connection_string":null,"dns_connection_string":null,"health_check_orchestration_id":null}"#,
    );
    both_ways::<UpdateMetadataOutput>(r#"{"instance_id":"00000000-0000-0000-0000-000000000000","created":true}"#);
}

#[test]
fn restart_postgres() {
    both_ways::<RestartPostgresInput>(r#"{"namespace":"toygres","instance_name":"demo"}"#);
    both_ways::<RestartPostgresOutput>(r#"{"restarted":true}"#);
}

#[test]
fn revert_operation() {
    both_ways::<RevertOperationInput>(r#"{"instance_id":"00000000-0000-0000-0000-000000000000"}"#);
    both_ways::<RevertOperationOutput>(r#"{"reverting":true}"#);
}

#[test]
fn the_names_are_the_contract() {
    use toygres_activities::names::activities;
    assert_eq!(activities::DEPLOY_POSTGRES, "toygres-activities::activity::deploy-postgres");
    assert_eq!(activities::DELETE_POSTGRES, "toygres-activities::activity::delete-postgres");
    assert_eq!(activities::WAIT_FOR_READY, "toygres-activities::activity::wait-for-ready");
    assert_eq!(activities::GET_CONNECTION_STRINGS, "toygres-activities::activity::get-connection-strings");
    assert_eq!(activities::TEST_CONNECTION, "toygres-activities::activity::test-connection");
    assert_eq!(activities::UPDATE_METADATA, "toygres-activities::activity::update-metadata");
    assert_eq!(activities::RESTART_POSTGRES, "toygres-activities::activity::restart-postgres");
    assert_eq!(activities::REVERT_OPERATION, "toygres-activities::activity::revert-operation");
}
