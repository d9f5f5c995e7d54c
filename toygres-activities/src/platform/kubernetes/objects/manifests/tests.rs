use std::collections::BTreeMap;

use super::*;

fn key() -> InstanceKey {
    InstanceKey::parse("default", "demo").unwrap()
}

/// The typed object as YAML, so that what the types don't know would be missing in the snapshot.
fn shown<K: Serialize>(object: Result<K, Failure>) -> String {
    let object = serde_json::to_value(object.unwrap()).unwrap();
    serde_saphyr::to_string(&object).unwrap()
}

fn login() -> Login {
    Login {
        host: "demo.default.svc.cluster.local".into(),
        owner: "app".into(),
        database: "app".into(),
        ca_certificate: "PEM".into(),
    }
}

fn record() -> BTreeMap<&'static str, String> {
    BTreeMap::from([("toygres.io/spec", "{}".to_owned())])
}

fn issued() -> Issued {
    Issued { chain_pem: "certificate".into(), key_pem: "key".into() }
}

#[test]
fn the_objects_of_an_instance() {
    let key = key();
    let manifests = Manifests::new(&key);
    let image = "docker.io/library/postgres:17";
    let version: PostgresVersion = "17".parse().unwrap();
    insta::assert_snapshot!("connection", shown(manifests.connection(&"p@:/?#%'\"\\ $".to_owned().into(), Some(&login()))));
    insta::assert_snapshot!("tls", shown(manifests.tls(&issued(), [("toygres.io/note", "x".to_owned())])));
    insta::assert_snapshot!("service_account", shown(manifests.service_account()));
    insta::assert_snapshot!("config_map", shown(manifests.config_map("certificate", &Sizing::of(1024))));
    insta::assert_snapshot!("volume_claim", shown(manifests.volume_claim(0, StorageSize::default(), None, record())));
    insta::assert_snapshot!("service_private", shown(manifests.service(false, None)));
    insta::assert_snapshot!("service_public", shown(manifests.service(true, Some("demo-db"))));
    insta::assert_snapshot!("network_policy_private", shown(manifests.network_policy(false, Some("toygres"))));
    insta::assert_snapshot!("network_policy_public", shown(manifests.network_policy(true, None)));
    insta::assert_snapshot!("disruption_budget", shown(manifests.disruption_budget(true)));
    insta::assert_snapshot!("stateful_set", shown(manifests.stateful_set(0, version, image, &Resources::default(), 999, true)));
    let stopped = manifests.stateful_set(0, version, image, &Resources::default(), 999, false).unwrap();
    assert_eq!(stopped.spec.unwrap().replicas, Some(0));
}

#[test]
fn the_log_has_the_prefix_by_which_it_is_read() {
    let key = key();
    let start =
        Manifests::new(&key).config_map("certificate", &Sizing::of(1024)).unwrap().data.unwrap().remove("start.sh").unwrap();
    assert!(start.contains(&format!("-c log_line_prefix='{}'", crate::server_log::PREFIX)), "{start}");
}

#[test]
fn the_volume_is_where_the_official_image_wants_it() {
    let key = key();
    let place = |version: &str| {
        let set = Manifests::new(&key).stateful_set(0, version.parse().unwrap(), "i", &Resources::default(), 999, true).unwrap();
        let container = set.spec.unwrap().template.spec.unwrap().containers.remove(0);
        let mount = container.volume_mounts.unwrap().remove(0).mount_path;
        (mount, container.env.unwrap().remove(0).value.unwrap())
    };
    assert_eq!(place("18.1"), ("/var/lib/postgresql".into(), "/var/lib/postgresql/18/docker".into()));
    assert_eq!(place("17"), ("/var/lib/postgresql/data".into(), "/var/lib/postgresql/data/pgdata".into()));
}

/// What a template says and the object's type doesn't know would get lost in silence.
#[test]
fn the_types_know_every_field_of_the_templates() {
    fn check<K: DeserializeOwned + Serialize>(manifests: &Manifests<'_>, template: Template, values: Json) {
        let text = manifests.text(template, values).unwrap();
        let written: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let kept = serde_json::to_value(parse::<K>(&text).unwrap()).unwrap();
        // Empty lists mean the same as none.
        let without_empty =
            |value: &serde_json::Value| value.to_string().replace(",\"egress\":[]", "").replace("\"egress\":[],", "");
        assert_eq!(without_empty(&written), without_empty(&kept), "{}", template.0);
    }
    let key = key();
    let manifests = Manifests::new(&key);
    let files = json!({ "start": "", "probe": "", "postgresql_conf": "", "pg_hba_conf": "", "client_ca": "" });
    check::<Secret>(&manifests, template!("postgres-connection.yaml"), json!({ "entries": { "password": "eA==" } }));
    check::<Secret>(&manifests, template!("postgres-tls.yaml"), json!({ "certificate_base64": "eA==", "key_base64": "eA==" }));
    check::<ServiceAccount>(&manifests, template!("postgres-serviceaccount.yaml"), json!({}));
    check::<ConfigMap>(&manifests, template!("postgres-configmap.yaml"), json!({ "files": files }));
    check::<PersistentVolumeClaim>(
        &manifests,
        template!("postgres-pvc.yaml"),
        json!({ "member": MemberNames::of(&key, 1), "storage_class": "fast", "storage": "1Gi" }),
    );
    check::<Service>(&manifests, template!("postgres-service.yaml"), json!({ "public": true }));
    check::<NetworkPolicy>(
        &manifests,
        template!("postgres-networkpolicy.yaml"),
        json!({ "public": false, "control_namespace": "x" }),
    );
    check::<PodDisruptionBudget>(&manifests, template!("postgres-poddisruptionbudget.yaml"), json!({ "max_unavailable": 0 }));
    let values = json!({ "member": MemberNames::of(&key, 1), "image": "i", "replicas": 1, "volume_path": "/v", "pgdata": "/v/d", "user_id": 999, "shared_memory": "64Mi", "resources": Resources::default() });
    check::<StatefulSet>(&manifests, template!("postgres-statefulset.yaml"), values);
}

/// The types above let only harmless values in; this is the wall behind them.
#[test]
fn no_value_can_add_a_field() {
    let key = key();
    let manifests = Manifests::new(&key);
    for evil in [
        "x\nspec:\n  hostNetwork: true",
        "\"}, evil: {\"",
        "{{ 7 * 7 }}",
        "a: b",
        "- x",
        "# x",
        "*x",
        "\u{2028}y",
        "'",
        "<&>",
        "no",
    ] {
        let service: Service = manifests.service(true, Some(evil)).unwrap();
        let annotations = service.metadata.annotations.unwrap();
        assert_eq!(annotations["service.beta.kubernetes.io/azure-dns-label-name"], evil);
        let claim = manifests.volume_claim(0, StorageSize::default(), Some(evil), record()).unwrap();
        assert_eq!(claim.spec.unwrap().storage_class_name.as_deref(), Some(evil));
        let set = manifests.stateful_set(0, "17".parse().unwrap(), evil, &Resources::default(), 999, true).unwrap();
        let pod = set.spec.unwrap().template.spec.unwrap();
        assert_eq!((pod.containers[0].image.as_deref(), pod.host_network), (Some(evil), None));
    }
}

#[test]
fn an_unknown_name_in_a_template_is_an_error() {
    assert!(render(("x.yaml", "a: {{ missing }}"), json!({})).is_err());
}

#[test]
fn the_password_is_in_its_secret_alone() {
    let key = key();
    let secret = Manifests::new(&key).connection(&"find-me".to_owned().into(), None).unwrap();
    let data: BTreeMap<_, _> = secret.data.unwrap();
    assert_eq!(data["password"].0, b"find-me");
    assert_eq!(serde_json::to_value(secret.string_data).unwrap(), json!(null));
}

/// The API server itself, strict about unknown fields, in a dry run.
#[tokio::test]
async fn the_api_server_takes_every_object_strictly() {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| value == "1");
    if !is_set("TOYGRES_TEST_KUBERNETES") {
        assert!(!is_set("TOYGRES_TEST_KUBERNETES_REQUIRED"), "a cluster is required, and TOYGRES_TEST_KUBERNETES=1 is missing");
        // Past the capture of output, which would hide it from those who read "ok".
        let words = "SKIPPED: there is no cluster, so the dry run of the manifests did nothing; set TOYGRES_TEST_KUBERNETES=1";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("\n{words}\n").as_bytes());
        return;
    }
    let client = crate::k8s_client::K8sClient::connect(&crate::k8s_client::ClusterChoice::default()).await.unwrap();
    let key = InstanceKey::parse("default", "a-dry-run-only").unwrap();
    let manifests = Manifests::new(&key);
    let folder = tempfile::tempdir().unwrap();
    let issued =
        crate::platform::certificates::CertificateAuthority::open(folder.path(), crate::platform::certificates::Signs::Instances)
            .unwrap()
            .issue(["demo"])
            .unwrap();
    macro_rules! dry_run {
        ($($object:expr),+ $(,)?) => {
            $(let (_, created) = client.apply("default", &$object.unwrap(), true).await.unwrap();
            assert!(created);)+
        };
    }
    dry_run!(
        manifests.connection(&"x".to_owned().into(), Some(&login())),
        manifests.tls(&issued, []),
        manifests.service_account(),
        manifests.config_map("certificate", &Sizing::of(1024)),
        manifests.volume_claim(0, StorageSize::default(), None, record()),
        manifests.service(false, None),
        manifests.service(true, Some("demo-db")),
        manifests.network_policy(false, Some("toygres")),
        manifests.network_policy(true, None),
        manifests.disruption_budget(true),
        manifests.stateful_set(0, "17".parse().unwrap(), "docker.io/library/postgres:17", &Resources::default(), 999, true),
        manifests.stateful_set(0, "18".parse().unwrap(), "docker.io/library/postgres:18", &Resources::default(), 999, true),
    );
    // Strict means strict.
    let mut odd = serde_json::to_value(manifests.service_account().unwrap()).unwrap();
    odd["automountToken"] = false.into();
    let odd: kube::core::DynamicObject = serde_json::from_value(odd).unwrap();
    let resource = kube::core::ApiResource::erase::<ServiceAccount>(&());
    let accounts: kube::Api<kube::core::DynamicObject> = kube::Api::namespaced_with(client.raw(), "default", &resource);
    let params = kube::api::PatchParams { dry_run: true, ..kube::api::PatchParams::apply("toygres").validation_strict() };
    let refused = accounts.patch("a-dry-run-only", &params, &kube::api::Patch::Apply(&odd)).await.unwrap_err();
    assert!(refused.to_string().contains("automountToken"), "{refused}");
}
