use proptest::prelude::*;

use super::*;

/// The documents of a text, which have to be good.
pub fn good(text: &str) -> Vec<Document> {
    let (mut documents, mut problems) = (Vec::new(), Vec::new());
    parse("f.yaml", text, &Namespace::default(), &mut documents, &mut problems);
    assert!(problems.is_empty(), "{problems:?}: {text}");
    documents
}

fn bad(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    parse("f.yaml", text, &Namespace::default(), &mut Vec::new(), &mut problems);
    problems
}

#[test]
fn a_file_holds_documents_lists_and_json() {
    let keys = |text: &str| good(text).iter().map(|document| document.key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys("name: a\n"), ["default/a"]);
    assert_eq!(keys("# nothing\n---\n---\nname: a\nnamespace: team\n---\nname: b\n"), ["team/a", "default/b"]);
    assert_eq!(keys("- name: a\n- name: b\n---\nname: c\n"), ["default/a", "default/b", "default/c"]);
    assert_eq!(keys(r#"[{"name": "a"}, {"name": "b", "namespace": "team"}]"#), ["default/a", "team/b"]);
    assert!(keys("").is_empty() && keys("# only a comment\n").is_empty());
    let [document] = &good("name: a\npostgres_version: 17\ncpu: 2\nlabels: {team: a}\n")[..] else { panic!("one") };
    assert_eq!(
        serde_json::Value::from(document.manifest.fields.clone()),
        serde_json::json!({
            "postgres_version": 17, "cpu": 2, "labels": { "team": "a" },
        })
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_without_its_value() {
    for (text, place, problem) in [
        ("name: a\nnmae: hunter2\n", "f.yaml:2:7 (document 1, nmae)", "is no field of an instance; known are name, namespace"),
        ("storage_size_gb: 3\n", "f.yaml:1 (document 1)", "name is missing"),
        ("name: a\nname: b\n", "f.yaml:2:1 (document 1", "\"name\" stands there twice"),
        ("name: a\n---\nname: b\nstorage_size_gb: ten\n", "f.yaml:4:18 (document 2, storage_size_gb)", "whole number"),
        ("name: a\nstorage_size_gb: 1.5\n", "f.yaml:2:18 (document 1, storage_size_gb)", "whole number"),
        ("name: a\nstorage_size_gb: 0\n", "f.yaml:2:18 (document 1, storage_size_gb)", "out of range"),
        ("name: a\npassword: 12345\n", "f.yaml:2:11 (document 1, password)", "in quotes"),
        ("name: a\npassword: [hunter2]\n", "f.yaml:2:11 (document 1, password)", "text (in quotes)"),
        ("name: a\npassword: \"hunter2\n", "f.yaml:2:11", "quote"),
        ("name: a\nuse_load_balancer: yes\n", "f.yaml:2:20 (document 1, use_load_balancer)", "true or false"),
        ("name: a\nlabels:\n  team: 1\n", "f.yaml:3:3 (document 1, labels)", "in quotes"),
        ("name: a\nlabels: [hunter2]\n", "f.yaml:2:9 (document 1, labels)", "a mapping"),
        ("name: a\nlabels: {a: null}\n", "f.yaml:2:9 (document 1, labels)", "in quotes"),
        ("name: a\nlabels: {a: b c}\n", "f.yaml:2:9 (document 1, labels)", "can't be a value"),
        ("name: a\npostgres_version: 17.10\n", "f.yaml:2:", "in quotes"),
        ("name: a\npostgres_version: \"13\"\n", "f.yaml:2:19 (document 1, postgres_version)", "14 to 18"),
        ("- name: a\n- name: Demo\n", "f.yaml:2:9 (document 2, name)", "did you mean \"demo\""),
        ("name: a\nnamespace: Team\n", "f.yaml:2:12 (document 1, namespace)", "did you mean \"team\""),
        (
            "name: a\nplatform: docker\n",
            "f.yaml:2:11 (document 1, platform)",
            "\"docker\" is unknown; known are local and kubernetes",
        ),
        ("name: a\ndns_label: blog\n", "f.yaml:2:12 (document 1, dns_label)", "use_load_balancer"),
        ("name: a\n bad: - x\n", "f.yaml:2:", "not allowed"),
        ("name: [\n", "f.yaml:1:7", "bracket"),
        ("hello hunter2\n", "f.yaml:1:1 (document 1", "an instance"),
        ("42\n", "f.yaml:1:1 (document 1", "an instance"),
        ("- hunter2\n", "f.yaml:1:", "mapping"),
        ("name: !secret hunter2\n", "f.yaml:1:", "tag"),
        ("name: a\nlabels: *x\n", "f.yaml:2:9", "anchor"),
    ] {
        let problems = bad(text);
        let [told] = &problems[..] else { panic!("{text:?}: {problems:?}") };
        assert!(told.starts_with(place) && told.contains(problem), "{text:?} is told as {told:?}");
        assert!(!told.contains("hunter2") && !told.contains("12345"), "{told}");
    }
    assert_eq!(bad("nmae: a\n---\nname: b\n---\nname: Demo\n").len(), 2, "all that is wrong is told");
}

#[test]
fn the_same_instance_twice_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.yaml");
    std::fs::write(&file, "name: a\n---\nname: b\n---\nname: a\nnamespace: default\n").unwrap();
    let file = file.to_string_lossy().into_owned();
    let error = read(std::slice::from_ref(&file), &Namespace::default()).err().unwrap();
    assert!(error.exit_status == 2 && error.evidence[0].contains(":5:7") && error.evidence[0].contains(":1:7"), "{error:?}");
    let error = read(&[file.clone(), file], &Namespace::default()).err().unwrap();
    assert!(error.message.contains("given twice"), "{error:?}");
    let error = read(&["/nowhere.yaml".into()], &Namespace::default()).err().unwrap();
    assert!(error.exit_status == 2 && error.message.contains("/nowhere.yaml"), "{error:?}");
}

/// Documents as JSON.
fn manifests() -> impl Strategy<Value = serde_json::Value> {
    let text = |pattern: &str| proptest::option::of(proptest::string::string_regex(pattern).unwrap());
    let key = prop_oneof!["[a-zA-Z0-9]{1,10}", Just("null".to_owned()), Just("example.org/env".into()), Just("1".into())];
    let value = prop_oneof!["[a-zA-Z0-9]{0,10}", "1e[0-9]", "0x[0-9A-F]{2}", Just("true".to_owned()), Just("no".into())];
    let labels = proptest::option::of(proptest::collection::btree_map(key, value, 0..5));
    let platform = prop_oneof![Just("local".to_owned()), Just("kubernetes".into())];
    let sizes = (proptest::option::of(1..=65_536_i64), text("1[4-8](\\.(0|[1-9][0-9]?))?"), labels);
    let flags = (any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>(), text("[a-z][a-z0-9-]{1,10}[a-z0-9]"));
    let given = (text("[1-9][0-9]{0,3}m?"), text("[1-9][0-9]{0,3}(Mi|Gi|M|G)"), text("[a-z0-9]{1,9}(\\.[a-z0-9]{1,5})?"));
    ("[a-z][a-z0-9]{0,9}x", "[a-z][a-z0-9]{0,9}", proptest::option::of(platform), sizes, flags, given).prop_map(
        |(name, namespace, platform, (storage_size_gb, postgres_version, labels), flags, (cpu, memory, storage_class))| {
            let (use_load_balancer, delete_protection, stopped, dns_label) = flags;
            let mut manifest = InstanceManifest { namespace: Some(namespace), ..InstanceManifest::of(name) };
            manifest.set("platform", platform);
            manifest.set("postgres_version", postgres_version);
            manifest.set("storage_size_gb", storage_size_gb);
            manifest.set("use_load_balancer", use_load_balancer);
            manifest.set("dns_label", dns_label.filter(|_| use_load_balancer == Some(true)));
            manifest.set("cpu", cpu);
            manifest.set("memory", memory);
            manifest.set("storage_class", storage_class);
            manifest.set("labels", labels.map(|labels| serde_json::json!(labels)));
            manifest.set("delete_protection", delete_protection);
            manifest.set("power", stopped.map(|stopped| if stopped { "stopped" } else { "running" }));
            serde_json::to_value(manifest).unwrap()
        },
    )
}

proptest! {
    /// `toygres get -o yaml | toygres apply -f -` sends what was printed.
    #[test]
    fn what_is_written_reads_back(written in manifests()) {
        let yaml = to_yaml(&[serde_json::from_value(written.clone()).unwrap()]).unwrap();
        let [document] = &good(&yaml)[..] else { panic!("one document") };
        let key = (document.key.namespace.as_str(), document.key.name.as_str());
        prop_assert_eq!(key, (written["namespace"].as_str().unwrap(), written["name"].as_str().unwrap()));
        prop_assert_eq!(serde_json::to_value(&document.manifest).unwrap(), written, "{}", yaml);
    }
}
