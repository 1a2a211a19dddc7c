//! Asks the sendoffs that would take this one's events. Hands nothing over.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;

use crate::aws::probe::{Finding, Verdict};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::handing;
use crate::event::name::Home;
use crate::handoff::Address;
use crate::handoff::envelope::FORMAT;
use crate::handoff::peer::Peer;
use crate::handoff::protocol::Greeting;
use crate::handoff::target::Trouble;

/// One finding for each target that is another sendoff. `home` is this daemon's.
pub(super) async fn findings(config: &Config, home: Home) -> Vec<Finding> {
    let peers: Vec<&Uri> = config.handoff.to.iter().filter_map(peer).collect();
    if peers.is_empty() {
        return Vec::new();
    }
    let clock = Clock::system();
    let party = handing::party(&clock, &home);
    let (token_file, ca) = (config.handoff.token_file.clone(), config.handoff.ca.clone());
    let connect = |url: &Uri| Peer::new(url, party.clone(), token_file.clone(), ca.clone(), clock.clone());
    // Whoever answers there is this configuration's own daemon, if it runs.
    let mut own = Vec::new();
    if config.tls.is_none() {
        for address in &config.listen.ingest {
            let url = format!("http://{}/", reachable(*address)).parse::<Uri>();
            if let Ok(url) = url
                && let Ok(peer) = connect(&url)
                && let Ok(greeting) = peer.greet().await
            {
                own.push(greeting.instance);
            }
        }
    }
    let mut found = Vec::new();
    for url in peers {
        let verdict = match connect(url) {
            Err(unusable) => Verdict::Missing {
                said: unusable.to_string(),
                remedy: "correct handoff.token_file and handoff.ca: their files must be readable".to_owned(),
            },
            Ok(peer) => match peer.greet().await {
                Ok(greeting) => judge(&greeting, &own, &home),
                Err(trouble) => not_greeted(trouble),
            },
        };
        found.push(Finding { subject: format!("hand-off to {url}"), verdict });
    }
    found
}

fn peer(address: &Address) -> Option<&Uri> {
    match address {
        Address::Peer(url) => Some(url),
        Address::Queue(_) => None,
    }
}

/// An address at which this machine reaches one of its listeners.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => {}
    }
    address
}

/// What a greeting means for hand-offs. `own` are the running daemons of this configuration.
fn judge(greeting: &Greeting, own: &[String], home: &Home) -> Verdict {
    let Greeting { format, instance, version, region, account_id } = greeting;
    let missing = |said: &str, remedy: &str| Verdict::Missing { said: said.to_owned(), remedy: remedy.to_owned() };
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    if own.contains(instance) {
        return missing("it is this daemon itself", "name another sendoff as handoff.to");
    }
    if *format < FORMAT {
        return missing(
            &format!("it reads hand-offs up to format {format}, and this one writes {FORMAT}"),
            "update it",
        );
    }
    for (key, theirs, ours) in
        [("lambda.region", region, &home.region), ("lambda.account_id", account_id, &home.account_id)]
    {
        if theirs != ours {
            let said = format!("its {key} is {}, and here it is {}", or_none(theirs), or_none(ours));
            return missing(&said, "give both the same: names of functions are relative to it");
        }
    }
    Verdict::Proven(format!("takes hand-offs of this one: version {version}, region {}", or_none(region)))
}

fn not_greeted(trouble: Trouble) -> Verdict {
    let (said, remedy) = match trouble {
        Trouble::NotNow { why, .. } => {
            (why, "start it, or correct handoff.to; check name resolution, the network and handoff.ca")
        }
        Trouble::Never { why } => (
            why,
            "let this one in: handoff.receive = true there, or a client with handoff = true whose token is in \
             handoff.token_file here",
        ),
        Trouble::Unanswered { why } => (why, "correct handoff.to: it must be another sendoff's ingest listener"),
    };
    Verdict::Missing { said, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_must_be_another_one_in_the_same_place() {
        let home = Home { region: Some("eu-central-1".to_owned()), account_id: None };
        let greeting = Greeting {
            format: FORMAT,
            instance: "a".to_owned(),
            version: "1.0.0".to_owned(),
            region: Some("eu-central-1".to_owned()),
            account_id: None,
        };
        let said = |greeting: Greeting, own: &[&str]| {
            let own: Vec<String> = own.iter().map(|&own| own.to_owned()).collect();
            match judge(&greeting, &own, &home) {
                Verdict::Missing { said, .. } => said,
                Verdict::Proven(how) => how,
                Verdict::Unknown(why) => panic!("{why}"),
            }
        };
        assert!(said(greeting.clone(), &["b"]).starts_with("takes hand-offs"));
        assert_eq!(said(greeting.clone(), &["b", "a"]), "it is this daemon itself");
        let elsewhere = Greeting { region: None, ..greeting.clone() };
        assert_eq!(said(elsewhere, &[]), "its lambda.region is none, and here it is eu-central-1");
        let account = Greeting { account_id: Some("123456789012".to_owned()), ..greeting.clone() };
        assert_eq!(said(account, &[]), "its lambda.account_id is 123456789012, and here it is none");
        let old = Greeting { format: FORMAT - 1, ..greeting };
        assert!(said(old, &[]).contains("up to format 0"));
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.0.0.7:1"), "10.0.0.7:1");
    }
}
