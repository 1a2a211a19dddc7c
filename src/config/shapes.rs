//! Warns about values that are allowed but look like mistakes. `check-config` prints these warnings, and the daemon
//! starts.

use super::Config;
use crate::admin::operators::Operators;
use crate::dispatch::Mode;
use crate::handoff::Address;

/// The regions of AWS as of 2026-11. sendoff also uses a region that is not listed.
const REGIONS: &[&str] = &[
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eusc-de-east-1",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "us-west-1",
    "us-west-2",
];

/// The warnings, each a sentence that says what to do.
pub fn suspicions(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for (key, region) in [("lambda.region", &config.lambda.region), ("sqs.region", &config.sqs.region)] {
        if let Some(region) = region.as_deref().filter(|region| !REGIONS.contains(region)) {
            let near = REGIONS.iter().map(|known| (strsim::damerau_levenshtein(known, region), known)).min();
            let near = near.filter(|(apart, _)| *apart <= 3);
            let meant = near.map_or("check it".to_owned(), |(_, known)| format!("did you mean \"{known}\"?"));
            found.push(format!("{key} = \"{region}\" is not an AWS region that this version knows: {meant}"));
        }
    }
    if config.lambda.region.is_none() {
        found.push(
            "lambda.region is not set, and neither are AWS_REGION and AWS_DEFAULT_REGION: unless a profile or instance metadata \
             has one, events are stored and wait. Set lambda.region"
                .to_owned(),
        );
    }
    let policies =
        config.dispatch.functions.iter().map(|(pattern, policy)| (format!("functions.\"{pattern}\""), policy));
    for (table, policy) in [("delivery".to_owned(), &config.dispatch.policy)].into_iter().chain(policies) {
        if let Mode::Confirm { timeout } = policy.mode
            && timeout >= policy.age_max
        {
            found.push(format!(
                "{table}: one attempt may take confirm_timeout ({}), and an event is given up at age_max ({}): raise age_max",
                humantime::format_duration(timeout),
                humantime::format_duration(policy.age_max)
            ));
        }
    }
    let letters = config.dead_letter.functions.iter().map(|(_, queue)| queue).chain(&config.dead_letter.queue_url);
    let letters: Vec<&String> = letters.collect();
    let to = config.handoff.to.iter().filter_map(|address| match address {
        Address::Queue(queue) => Some(queue),
        Address::Peer(_) => None,
    });
    if let Some(queue) = to.chain(&config.handoff.receive_queue).find(|queue| letters.contains(queue)) {
        found.push(format!(
            "{queue} is a dead-letter queue and a hand-off queue: a redrive leaves events of hand-offs on it, and a hand-off \
             leaves dead letters. Give each a queue of its own"
        ));
    }
    let Operators { required, operators, .. } = &config.operators;
    if *required && operators.is_empty() && config.listen.admin_unix.is_none() {
        found.push(
            "auth.admin is \"required\", but there is no operator, and here no socket for root: write a table [operators.NAME], \
             or set listen.admin_unix. Under systemd the unit's RuntimeDirectory= sets it"
                .to_owned(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, load};

    fn of(set: &[&str]) -> Vec<String> {
        let flags = Flags { set: set.iter().map(|&pair| pair.to_owned()).collect(), ..Flags::default() };
        suspicions(&load(&flags, &Environment::from_pairs(&[("HOME", "/h")])).unwrap().config)
    }

    #[test]
    fn a_region_that_is_mistyped_is_named_with_the_one_that_was_meant() {
        assert_eq!(of(&["lambda.region=eu-central-1"]), Vec::<String>::new());
        let said = of(&["lambda.region=eu-centrl-1"]);
        assert_eq!(said.len(), 2, "of Lambda, and so of SQS: {said:?}");
        assert!(
            said[0].contains("lambda.region = \"eu-centrl-1\"") && said[0].contains("did you mean \"eu-central-1\"?")
        );
        assert!(of(&[])[0].contains("lambda.region is not set"));
    }

    #[test]
    fn an_attempt_that_outlasts_its_event_is_suspicious() {
        let said = of(&["lambda.region=eu-central-1", "functions.a.mode=confirm", "functions.a.age_max=10m"]);
        assert!(said.len() == 1 && said[0].contains("functions.\"a\": one attempt may take"), "{said:?}");
    }

    #[test]
    fn a_queue_for_dead_letters_and_hand_offs_is_suspicious() {
        let url = |name: &str| format!("https://sqs.eu-central-1.amazonaws.com/123456789012/{name}");
        let set = |dead: &str, of: &str, from: &str| {
            of_all(&[
                format!("dead_letter.queue_url={}", url(dead)),
                format!("functions.a.queue_url={}", url(of)),
                format!("handoff.receive_queue={}", url(from)),
                format!("handoff.to={}", url(from)),
            ])
        };
        assert_eq!(set("dead", "own", "handoff"), [""; 0]);
        for said in [set("same", "own", "same"), set("dead", "same", "same")] {
            assert!(said.len() == 1 && said[0].contains("a queue of its own"), "{said:?}");
        }
    }

    fn of_all(set: &[String]) -> Vec<String> {
        let all: Vec<&str> = ["lambda.region=eu-central-1"].into_iter().chain(set.iter().map(String::as_str)).collect();
        of(&all)
    }

    #[test]
    fn an_operators_door_that_nobody_can_open_is_suspicious() {
        let said = of(&["lambda.region=eu-central-1", "auth.admin=required"]);
        assert!(said.len() == 1 && said[0].contains("no operator"), "{said:?}");
        assert_eq!(of(&["lambda.region=eu-central-1", "auth.admin=required", "listen.admin_unix=/s"]), [""; 0]);
    }
}
