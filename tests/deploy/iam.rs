//! Tests the IAM policies: valid JSON, valid shape, and no wider than they say.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::tools::root;

#[test]
fn every_policy_allows_little_and_names_what_it_is_for() {
    let mut actions = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("deploy/iam")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let policy: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(policy["Version"], "2012-10-17", "{name}");
        for statement in policy["Statement"].as_array().unwrap() {
            let keys: BTreeSet<&str> = statement.as_object().unwrap().keys().map(String::as_str).collect();
            let allowed = ["Sid", "Effect", "Action", "Resource", "Condition", "Principal"];
            assert!(keys.iter().all(|key| allowed.contains(key)), "{name}: {keys:?}");
            assert_eq!(statement["Effect"], "Allow", "{name}");
            let sid = statement["Sid"].as_str().unwrap();
            assert!(sid.chars().all(|c| c.is_ascii_alphanumeric()), "{name}: AWS takes letters and digits only: {sid}");
            let is_trust = name.starts_with("trust-");
            assert_eq!((keys.contains("Principal"), keys.contains("Resource")), (is_trust, !is_trust), "{name}");
            for resource in texts(&statement["Resource"]) {
                let parts: Vec<&str> = resource.split(':').collect();
                assert!(
                    parts.len() >= 6 && parts[0] == "arn" && parts[..5].iter().all(|part| !part.contains('*')),
                    "{name}: {resource}"
                );
                assert!(!["*", "function:*"].contains(&parts[5..].join(":").as_str()), "{name}: {resource}");
            }
            actions.extend(texts(&statement["Action"]));
        }
    }
    // All actions that the code uses, and no others.
    let expected = [
        "kms:Decrypt",
        "kms:GenerateDataKey",
        "lambda:InvokeFunction",
        "sqs:ChangeMessageVisibility",
        "sqs:DeleteMessage",
        "sqs:GetQueueAttributes",
        "sqs:ReceiveMessage",
        "sqs:SendMessage",
        "sts:AssumeRole",
        "sts:AssumeRoleWithWebIdentity",
        "sts:TagSession",
    ];
    assert_eq!(actions, expected.map(str::to_owned).into());
}

/// A text, or a list of texts.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}
