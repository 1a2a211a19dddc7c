//! Reads the `[outbox.postgres]` table: the database that daemons share, if `outbox.store` says so.

use std::path::PathBuf;
use std::time::Duration;

use super::read::{Reader, Zero};
use crate::outbox::Limits;
use crate::outbox::postgres::{Realm, Server, Settings, Tls, examine};

const URL: &str = "outbox.postgres.url";

const IAM: &str = "outbox.postgres.iam";

const URL_EXAMPLE: &str = "write it like \"postgres://sendoff@db.example.com:5432/orders\"";

/// Daemons that miss each other's beats for less would end each other whenever the database is slow for a moment.
const LEASE_MIN: Duration = Duration::from_secs(6);

/// The inner `None` means that the outbox is on the local disk.
pub fn read(r: &mut Reader, limits: Option<Limits>) -> Option<Option<Settings>> {
    let is_shared = r.word("outbox.store", &[("sled", false), ("postgres", true)]);
    let url = r.optional(URL);
    let password_file = r.optional("outbox.postgres.password_file");
    let tls = r.optional("outbox.postgres.tls");
    let ca = r.optional("outbox.postgres.tls_ca");
    let iam = r.boolean(IAM);
    let member = r.optional("outbox.postgres.member");
    let lease = lease(r);
    let poll_max = r.duration("outbox.postgres.poll_max", Zero::Refused);
    let accept_timeout = r.duration("outbox.postgres.accept_timeout", Zero::Refused);
    if !is_shared? {
        return Some(None);
    }
    let says = |key: &str, nothing: &str| r.values().find(key).is_some_and(|entry| entry.value.to_string() != nothing);
    // It may take the events of daemons with an outbox of their own.
    if says("handoff.to", "") {
        let key = "handoff.to";
        let hint = "the events of a shared outbox stay in the database, where other daemons deliver them";
        r.contradiction(key, "has no meaning with", "outbox.store", Some(hint));
    }
    let realm = realm(r);
    let Some(url) = url? else {
        return r.refuse(URL, "empty, and outbox.store is \"postgres\"", Some(URL_EXAMPLE));
    };
    let place = match examine(&url) {
        Ok(place) => place,
        Err(why) => return r.refuse(URL, &why, Some(URL_EXAMPLE)),
    };
    if place.has_password {
        let hint = "put the password into a file, and name that as outbox.postgres.password_file";
        return r.refuse(URL, "has a password, which logs and `show-config` would show", Some(hint));
    }
    let ca = ca?.map(PathBuf::from);
    let tls = match tls?.as_deref() {
        Some("off") => Tls::Off,
        Some("verify-full") => Tls::VerifyFull { ca },
        None if place.is_local => Tls::Off,
        None => Tls::VerifyFull { ca },
        Some(_) => return r.refuse("outbox.postgres.tls", "must be \"off\", \"verify-full\" or empty", None),
    };
    let (iam, password_file) = (iam?, password_file?);
    if iam && password_file.is_some() {
        let hint = "AWS makes the passwords: remove one of both";
        r.contradiction(IAM, "has no meaning with", "outbox.postgres.password_file", Some(hint));
    }
    if iam && tls == Tls::Off {
        return r.refuse(
            IAM,
            "needs TLS: a token is as good as a password",
            Some("set outbox.postgres.tls = \"verify-full\""),
        );
    }
    let server = Server { iam, ..Server::new(url, password_file.map(PathBuf::from), tls) };
    Some(Some(Settings {
        limits: limits?,
        server,
        member: member?.unwrap_or_default(),
        lease: lease?,
        poll_max: poll_max?,
        accept_timeout: accept_timeout?,
        realm,
    }))
}

/// Where events go, as far as the configuration says. What else is wrong with these keys is told where they are used.
fn realm(r: &Reader) -> Realm {
    let said = |key: &str| {
        let entry = r.values().find(key).map(|entry| entry.value.to_string());
        entry.filter(|text| !text.is_empty())
    };
    Realm { region: said("lambda.region"), account: said("lambda.account_id"), endpoint: said("lambda.endpoint_url") }
}

fn lease(r: &mut Reader) -> Option<Duration> {
    const KEY: &str = "outbox.postgres.lease";
    let lease = r.duration(KEY, Zero::Refused)?;
    if lease < LEASE_MIN {
        return r.refuse(KEY, "less than 6s: a slow moment of the database would look like a dead daemon", None);
    }
    Some(lease)
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Environment, Flags, load};

    fn loaded(set: &[&str]) -> Result<Config, String> {
        let set = set.iter().map(|set| (*set).to_owned()).collect();
        let flags = Flags { file: None, state_dir: Some("/s".to_owned()), set };
        load(&flags, &Environment::default()).map(|loaded| loaded.config).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_shared_outbox_needs_a_database_without_a_password_in_its_url() {
        assert!(loaded(&[]).unwrap().postgres.is_none());
        let refused =
            |url: &str| loaded(&["outbox.store=postgres", &format!("outbox.postgres.url={url}")]).unwrap_err();
        assert!(refused("").contains("empty"), "{}", refused(""));
        assert!(refused("mysql://db/orders").contains("not the URL of a PostgreSQL database"));
        let secret = refused("postgres://me:hunter2@db/orders");
        assert!(secret.contains("password_file") && !secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn a_shared_outbox_hands_nothing_over_and_takes_what_others_do() {
        let queue = "handoff.receive_queue=https://sqs.eu-central-1.amazonaws.com/123456789012/handoff";
        let with =
            |set: &str| loaded(&["outbox.store=postgres", "outbox.postgres.url=postgres://me@127.0.0.1/orders", set]);
        let why = with("handoff.to=http://a.test:9477").unwrap_err();
        assert!(why.contains("has no meaning with") && why.contains("where other daemons deliver"), "{why}");
        for set in ["handoff.receive=true", queue] {
            assert!(with(set).is_ok(), "{set}");
        }
    }

    #[test]
    fn tokens_of_iam_need_tls_and_exclude_a_password() {
        let with = |url: &str, more: &[&str]| {
            let url = format!("outbox.postgres.url={url}");
            let all: Vec<&str> =
                ["outbox.store=postgres", "outbox.postgres.iam=true", &url].iter().chain(more).copied().collect();
            loaded(&all).map(|config| config.postgres.unwrap().server.iam)
        };
        assert_eq!(with("postgres://me@db/orders", &[]), Ok(true));
        assert!(with("postgres://me@127.0.0.1/orders", &[]).unwrap_err().contains("needs TLS"));
        let both = with("postgres://me@db/orders", &["outbox.postgres.password_file=/p"]).unwrap_err();
        assert!(both.contains("outbox.postgres.password_file"), "{both}");
    }

    #[test]
    fn connections_to_other_machines_are_encrypted_unless_somebody_says_otherwise() {
        use super::Tls;
        let tls = |set: &[&str]| {
            let all: Vec<&str> = ["outbox.store=postgres"].iter().chain(set).copied().collect();
            loaded(&all).unwrap().postgres.unwrap().server.tls
        };
        assert_eq!(tls(&["outbox.postgres.url=postgres://me@127.0.0.1/orders"]), Tls::Off);
        assert_eq!(tls(&["outbox.postgres.url=postgres://me@db/orders"]), Tls::VerifyFull { ca: None });
        assert_eq!(tls(&["outbox.postgres.url=postgres://me@db/orders", "outbox.postgres.tls=off"]), Tls::Off);
    }
}
