//! Documents of instances on both platforms, and one that becomes public and private again.

use serde_json::Value;
use toygres_e2e::Cluster;

#[tokio::test]
async fn one_file_for_both_platforms_and_public_and_private_again() {
    let Some(cluster) = Cluster::new("apply").await.unwrap() else { return };
    let namespace = cluster.namespace.name.clone();
    let file = format!(
        "name: pod\nnamespace: {namespace}\nplatform: kubernetes\nlabels: {{team: a}}\n---\nname: process\nplatform: local\n"
    );
    let apply = async |text: &str| {
        let run = cluster.toygres.run_with_input(&["apply", "-f", "-"], text.as_bytes()).await.unwrap();
        println!("{run}");
        run.expect_code(0).unwrap().stdout
    };
    let made = apply(&file).await;
    for key in [format!("{namespace}/pod"), "default/process".into()] {
        assert!(made.contains(&format!("{key} created (")), "{key}: {made}");
    }
    assert_eq!(apply(&file).await.matches(" unchanged").count(), 2);
    let yaml = cluster.ok(&["get", "pod", "-o", "yaml"]).await.unwrap().stdout;
    assert!(yaml.contains("platform: kubernetes") && yaml.contains("use_load_balancer: false"), "{yaml}");
    assert!(apply(&yaml).await.contains("unchanged"));

    let uid = cluster.namespace.uid("pod/pod-0").await.unwrap();
    let instance = cluster.json(&["get", "pod"]).await.unwrap();
    for (public, service, source) in
        [(true, "LoadBalancer", None), (false, "ClusterIP", Some(&instance["status"]["ip_connection_string"]))]
    {
        let text = format!("name: pod\nnamespace: {namespace}\nuse_load_balancer: {public}\n");
        let changed = apply(&text).await;
        assert!(changed.starts_with(&format!("{namespace}/pod changed (use_load_balancer) (")), "{changed}");
        let services = cluster.namespace.object("services").await.unwrap();
        let types: Vec<_> =
            services["items"].as_array().unwrap().iter().filter_map(|item| item["spec"]["type"].as_str()).collect();
        assert!(types.contains(&service) || (!public && !types.contains(&"LoadBalancer")), "{types:?}");
        let now = cluster.json(&["get", "pod"]).await.unwrap();
        assert_eq!(now["spec"]["use_load_balancer"], Value::Bool(public));
        assert_eq!(source.is_some_and(|before| *before == now["status"]["ip_connection_string"]), !public, "{now:#}");
        assert_eq!(cluster.sql("pod", "select 1").await.unwrap(), "1");
    }
    assert_eq!(cluster.namespace.uid("pod/pod-0").await.unwrap(), uid, "its server was started anew for that");
    cluster.toygres.ok(&["delete", "process", "--yes"]).await.unwrap();
    cluster.delete("pod").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}
