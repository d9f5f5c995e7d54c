use std::collections::BTreeMap;

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Value, json};
use toygres_client::resources::InstanceManifest;
use toygres_models::InstanceKey;

use super::*;
use crate::api::instances::plan::Request;

/// Checks documents as an editor does.
pub fn validator() -> Validator {
    jsonschema::draft202012::new(&schema()).unwrap()
}

/// Whether the server takes the document, as far as that can be said without an instance.
fn is_accepted(document: &Value) -> bool {
    let Ok(manifest) = serde_json::from_value::<InstanceManifest>(document.clone()) else { return false };
    let namespace = manifest.namespace.as_deref().unwrap_or("default");
    InstanceKey::parse(namespace, &manifest.name).is_ok() && Request::check(&manifest).is_ok()
}

#[test]
fn the_schema_is_one() {
    jsonschema::draft202012::meta::validate(&schema()).unwrap();
    assert!(validator().is_valid(&json!([{ "name": "a" }, { "name": "b" }])));
    assert!(!validator().is_valid(&json!([{ "name": "a" }, { "nmae": "b" }])));
    assert!(!validator().is_valid(&json!("demo")));
}

#[test]
fn an_editor_and_the_server_agree() {
    let validator = validator();
    let long = "x".repeat(64);
    let many: BTreeMap<String, String> = (0..33).map(|n| (format!("k{n}"), String::new())).collect();
    let agree = |document: Value, good: bool| {
        assert_eq!(is_accepted(&document), good, "the server on {document}");
        assert_eq!(validator.is_valid(&document), good, "the schema on {document}");
    };
    for name in ["a", "demo", "a-1", "toygres1", "none1", &"a".repeat(50)] {
        agree(json!({ "name": name }), true);
    }
    for name in ["", "Demo", "1a", "a-", "a_b", "a b", "a\n", "null", "yes", "toygres", "toygres-x", "ünï", &"a".repeat(51)] {
        agree(json!({ "name": name }), false);
    }
    for (field, good, bad) in [
        ("namespace", vec![json!("team"), json!("toygres"), json!(null)], vec![json!("Team"), json!(""), json!(1)]),
        ("platform", vec![json!("local"), json!("kubernetes"), json!(null)], vec![json!("docker"), json!("Local"), json!(1)]),
        (
            "postgres_version",
            vec![json!("17"), json!("17.4"), json!("14.0"), json!(18), json!(18.0), json!(null)],
            vec![
                json!("13"),
                json!(13),
                json!(17.4),
                json!("17."),
                json!("017"),
                json!("17.04"),
                json!(""),
                json!(true),
                json!([]),
            ],
        ),
        (
            "storage_size_gb",
            vec![json!(1), json!(65_536), json!(10.0), json!(null)],
            vec![json!(0), json!(65_537), json!(-1), json!("10"), json!(1.5)],
        ),
        (
            "password",
            vec![json!("p@:/?#%'\"\\ $"), json!(" "), json!(null)],
            vec![
                json!(""),
                json!("a\nb"),
                json!("a\u{0}"),
                json!("\u{85}"),
                json!("secret://x"),
                json!(1),
                json!("x".repeat(1025)),
            ],
        ),
        ("use_load_balancer", vec![json!(true), json!(false), json!(null)], vec![json!("true"), json!(1)]),
        (
            "cpu",
            vec![json!("1"), json!("500m"), json!(2), json!(2.0), json!(null)],
            vec![json!("0"), json!(0), json!("1.5"), json!(1.5), json!("1Gi"), json!("")],
        ),
        ("memory", vec![json!("512Mi"), json!("2G"), json!(null)], vec![json!("2"), json!(2), json!("2gi"), json!("0Gi")]),
        (
            "storage_class",
            vec![json!("fast"), json!("a.b-c"), json!(null)],
            vec![json!("A"), json!("a..b"), json!("-a"), json!(""), json!(long.clone())],
        ),
        (
            "labels",
            vec![json!({}), json!({ "team": "a", "example.org/env": "" }), json!(null)],
            vec![
                json!({ "": "a" }),
                json!({ "a": "b c" }),
                json!({ "a": 1 }),
                json!({ "-a": "" }),
                json!({ "a": long }),
                json!([]),
                json!(many),
            ],
        ),
        ("delete_protection", vec![json!(true), json!(null)], vec![json!("yes"), json!(0)]),
        ("disruption_budget", vec![json!(true), json!(false), json!(null)], vec![json!("no"), json!(1)]),
        ("power", vec![json!("running"), json!("stopped"), json!(null)], vec![json!("on"), json!("Stopped"), json!(false)]),
        ("storage_size", vec![], vec![json!(1)]),
    ] {
        for value in good {
            agree(json!({ "name": "demo", field: value }), true);
        }
        for value in bad {
            agree(json!({ "name": "demo", field: value }), false);
        }
    }
    for (label, good) in [("blog", true), ("my-blog", true), ("ab", false), ("1ab", false), ("ab-", false), ("Abc", false)] {
        agree(json!({ "name": "demo", "use_load_balancer": true, "dns_label": label }), good);
        agree(json!({ "name": "demo", "dns_label": label }), false);
        agree(json!({ "name": "demo", "use_load_balancer": false, "dns_label": label }), false);
    }
    agree(json!({ "name": "demo", "dns_label": null }), true);
    agree(json!({}), false);
    agree(json!({ "name": null }), false);
}

proptest! {
    #[test]
    fn they_agree_on_names_of_all_kinds(text in "[a-z0-9A-Z_ -]{0,8}|\\PC{0,5}|(no|yes|toygres)-?") {
        let document = json!({ "name": text });
        prop_assert_eq!(validator().is_valid(&document), is_accepted(&document), "{}", document);
    }

    #[test]
    fn they_agree_on_texts_of_all_kinds(text in "[a-zA-Z0-9._/-]{0,6}|1[0-9](\\.[0-9]{1,3})?|[0-9]{1,10}(m|Mi|G)?|\\PC{0,4}", field in 0_usize..5) {
        let field = ["postgres_version", "cpu", "memory", "storage_class", "password"][field];
        let document = json!({ "name": "demo", field: text });
        prop_assert_eq!(validator().is_valid(&document), is_accepted(&document), "{}", document);
        let document = json!({ "name": "demo", "labels": { text.clone(): "" } });
        prop_assert_eq!(validator().is_valid(&document), is_accepted(&document), "{}", document);
    }
}
