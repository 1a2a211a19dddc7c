//! Reads who may call the ingest listener: `[auth]`, and the tables of `[clients]`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::raw::CLIENTS;
use super::read::{Reader, Zero};
use crate::event::Pattern;
use crate::event::name::Home;
use crate::ingest::client::{Client, Clients, Ways};
use crate::ingest::pattern::canonical;

/// The most clients. Every request is compared with the secrets of all of them.
const CLIENTS_MAX: usize = 1_000;

/// The most characters in the name of a client, which is a label of metrics.
const NAME_CHARS_MAX: usize = 64;

/// The length of real access key ids (IAM's API model).
const KEY_ID_CHARS: std::ops::RangeInclusive<usize> = 16..=128;

/// With a larger value, a recorded request could be repeated for too long.
const SKEW_MAX: Duration = Duration::from_secs(15 * 60);

/// Whether every caller of `ingest` must be a known client.
pub fn required(r: &mut Reader) -> Option<bool> {
    r.word("auth.ingest", &[("none", false), ("required", true)])
}

/// `region` is the daemon's own. `asks` says whether `ingest` asks for client certificates. It is
/// `None` if there is no authority that could verify them.
pub fn read(r: &mut Reader, region: Option<&str>, required: Option<bool>, asks: Option<bool>) -> Option<Clients> {
    let skew = r.duration("auth.skew", Zero::Refused);
    if skew.is_some_and(|skew| skew > SKEW_MAX) {
        r.refuse::<()>("auth.skew", "more than 15m, the most that AWS allows", None);
    }
    let account_id = r.values().find("lambda.account_id").map(|entry| entry.value.to_string());
    let account_id = account_id.filter(|account_id| !account_id.is_empty());
    let home = Home { region: region.map(str::to_owned), account_id };
    let tables = r.values().tables(CLIENTS).to_vec();
    let mut taken = BTreeSet::new();
    let read = |r: &mut Reader| tables.iter().map(|(name, table)| client(r, name, table, &home)).collect();
    let clients: Vec<_> = r.live(read);
    for (client, (_, table)) in clients.iter().zip(&tables) {
        let Some((_, ways)) = client else { continue };
        let users = ways.uids.iter().map(|uid| format!("uid {uid}"));
        let mut proofs = ways.access_key_id.iter().chain(&ways.names).cloned().chain(users);
        if let Some(proof) = proofs.find(|proof| !taken.insert(proof.clone())) {
            r.refuse_table(table, &format!("{proof:?} stands for another client already"), "give each client its own");
        }
        let unseen = match asks {
            Some(true) => None,
            Some(false) => Some(("ingest does not speak TLS", "add \"ingest\" to tls.listeners")),
            None => {
                let hint = "name the file of the authority that issues the certificates of clients";
                Some(("there is no tls.client_ca", hint))
            }
        };
        if let Some((why, hint)) = unseen.filter(|_| !ways.names.is_empty()) {
            r.refuse::<()>(&format!("{table}.san"), why, Some(hint));
        }
    }
    let required = required?;
    if tables.len() > CLIENTS_MAX {
        r.refuse_table(&tables[CLIENTS_MAX].1, &format!("more than {CLIENTS_MAX} clients"), "let some share a table");
    }
    if required && tables.is_empty() {
        let hint = "write a table [clients.NAME] for each, as the end of the file of all keys shows";
        return r.refuse("auth.ingest", "there is no client", Some(hint));
    }
    Some(Clients { required, skew: skew?, clients: clients.into_iter().collect::<Option<_>>()? })
}

/// The names in a `san` key, each once. DNS names in lower case: their case does not matter (RFC 4343), that of a URI
/// does.
pub(super) fn names_of_certificates(r: &mut Reader, table: &str, san: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in san.split_whitespace() {
        if !can_be_in_a_certificate(name) {
            let why = format!("{name:?} is neither a DNS name nor a URI, so no certificate matches it");
            r.refuse::<()>(
                &format!("{table}.san"),
                &why,
                Some("write names like \"orders.shop.svc\" or \"spiffe://shop/orders\""),
            );
        }
        let name = if name.contains("://") { name.to_owned() } else { name.to_ascii_lowercase() };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether a certificate can have this DNS name (RFC 1123, in ASCII) or this URI.
fn can_be_in_a_certificate(name: &str) -> bool {
    if name.contains("://") {
        return name.is_ascii() && name.parse::<Uri>().is_ok();
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.parse::<IpAddr>().is_err() && name.len() <= 253 && name.split('.').all(is_label)
}

/// The users in a `uid` key.
pub(super) fn users(r: &mut Reader, table: &str, written: &str) -> Option<Vec<u32>> {
    /// What the kernel tells of every user that a user namespace does not map (/proc/sys/fs/overflowuid).
    const ANYBODY: u32 = 65_534;
    let key = format!("{table}.uid");
    let uids: Result<Vec<u32>, _> = written.split_whitespace().map(str::parse).collect();
    let Ok(uids) = uids else {
        let hint = "write users by number, with spaces between, like \"1001 1002\"";
        return r.refuse(&key, "not the numbers of users", Some(hint));
    };
    if uids.contains(&ANYBODY) {
        let hint = "with PrivateUsers= in the unit, every user of the machine has this number: use the permissions of the \
                    socket file instead";
        return r.refuse(&key, "65534 is nobody in particular", Some(hint));
    }
    Some(uids)
}

/// Reads the keys of one table.
fn client(r: &mut Reader, name: &str, table: &str, home: &Home) -> Option<(Client, Ways)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || !name.chars().all(is_name) || name == "unknown" {
        let hint = "use letters, digits and -_. , at most 64 of them; \"unknown\" stands for all others in metrics";
        r.refuse_table(table, "not a name for a client", hint);
        return None;
    }
    let functions = functions(r, table, home);
    let mut right = |key: &str| {
        let key = format!("{table}.{key}");
        if r.values().find(&key).is_some() { r.boolean(&key) } else { Some(false) }
    };
    let (calls, hands_over) = (right("calls"), right("handoff"));
    let mut text = |key: &str| {
        let key = format!("{table}.{key}");
        if r.values().find(&key).is_some() { r.optional(&key) } else { Some(None) }
    };
    let [path_token_file, token_file, access_key_id, secret_file, san, uid] =
        ["path_token_file", "token_file", "access_key_id", "secret_file", "san", "uid"].map(&mut text);
    let uids = users(r, table, &uid?.unwrap_or_default());
    let ways = Ways {
        path_token_file: path_token_file?.map(PathBuf::from),
        token_file: token_file?.map(PathBuf::from),
        access_key_id: access_key_id?,
        secret_file: secret_file?.map(PathBuf::from),
        names: names_of_certificates(r, table, &san?.unwrap_or_default()),
        uids: uids?,
    };
    if ways == Ways::default() {
        let hint = "give it path_token_file, token_file, access_key_id with secret_file, san, or uid";
        r.refuse_table(table, "this client has no way to prove who it is", hint);
    }
    if ways.access_key_id.is_some() != ways.secret_file.is_some() {
        r.refuse_table(table, "a key pair is access_key_id and secret_file", "write both, or neither");
    }
    let is_key_id = |id: &String| {
        KEY_ID_CHARS.contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if ways.access_key_id.as_ref().is_some_and(|id| !is_key_id(id)) {
        let hint = "use 16 letters and digits or more; `sendoff auth mint --access-key-id` prints one";
        r.refuse::<()>(&format!("{table}.access_key_id"), "not the id of a key", Some(hint));
    }
    let client = Client { name: name.to_owned(), functions: functions?, calls: calls?, hands_over: hands_over? };
    Some((client, ways))
}

/// The patterns of the functions that a client may use, in the form of stored names.
fn functions(r: &mut Reader, table: &str, home: &Home) -> Option<Vec<String>> {
    let key = format!("{table}.functions");
    let hint = "separate names or patterns by spaces, like \"orders-* invoices\"; \"*\" is every function";
    let written = if r.values().find(&key).is_some() { r.text(&key)? } else { String::new() };
    if written.trim().is_empty() {
        r.refuse_table(table, "functions is missing", hint);
        return None;
    }
    let mut patterns = Vec::new();
    for word in written.split_whitespace() {
        let pattern = canonical(word, home).and_then(|stored| stored.parse::<Pattern>().ok());
        let Some(pattern) = pattern else {
            return r.refuse(&key, &format!("{word:?} cannot match the name of a function"), Some(hint));
        };
        patterns.push(pattern.as_str().to_owned());
    }
    Some(patterns)
}

#[cfg(test)]
mod tests {
    use crate::config::raw::Document;
    use crate::config::{Environment, Flags, Loaded, Problems, check_layers};

    fn load(text: &str) -> Result<Loaded, Problems> {
        let environment = Environment::from_pairs(&[("HOME", "/h"), ("AWS_REGION", "eu-central-1")]);
        check_layers(Some(Document { name: "s.toml", text }), &environment, &Flags::default())
    }

    #[test]
    fn clients_have_patterns_of_stored_names_and_ways_to_be_known() {
        let text = r#"
            [auth]
            ingest = "required"
            [tls]
            cert = "/c"
            key = "/k"
            client_ca = "/a"
            [clients.orders]
            functions = "orders-*  arn:aws:lambda:eu-central-1:123456789012:function:invoices:prod"
            path_token_file = "/p"
            san = "spiffe://shop/orders Orders.shop.svc orders.shop.svc"
            [clients."b.c"]
            functions = "*"
            calls = true
            access_key_id = "SOFFAAAAAAAAAAAAAAAA"
            secret_file = "/s"
            [listen]
            ingest = "0.0.0.0:9477"
            [lambda]
            account_id = "123456789012"
        "#;
        let Loaded { config, entries } = load(text).unwrap();
        let clients = config.clients;
        assert!(clients.required && clients.matter());
        let (orders, ways) = &clients.clients[0];
        assert_eq!((orders.name.as_str(), orders.calls), ("orders", false));
        assert_eq!(orders.functions, ["orders-*", "invoices:prod"]);
        assert_eq!(ways.names, ["spiffe://shop/orders", "orders.shop.svc"]);
        let (other, ways) = &clients.clients[1];
        assert_eq!(load("clients.a = { functions = '*', uid = '7' }").unwrap().config.clients.clients[0].1.uids, [7]);
        assert!(other.name == "b.c" && other.calls && ways.access_key_id.is_some());
        assert!(entries.iter().any(|entry| entry.key == "clients.\"b.c\".calls"));
        assert!(!load("").unwrap().config.clients.matter());
    }

    #[test]
    fn an_address_of_others_is_allowed_where_clients_are_required_and_tls_is_on() {
        let of = |auth: &str, tls: &str| {
            let clients = "[clients.a]\nfunctions = '*'\ntoken_file = '/t'\n";
            load(&format!("[listen]\ningest = '0.0.0.0:9477'\n[auth]\ningest = '{auth}'\n{tls}{clients}"))
        };
        let tls = "[tls]\ncert = '/c'\nkey = '/k'\n";
        assert!(of("required", tls).is_ok());
        for (auth, tls) in
            [("none", tls), ("required", ""), ("required", "[tls]\ncert = '/c'\nkey = '/k'\nlisteners = 'admin'\n")]
        {
            let said = of(auth, tls).unwrap_err().to_string();
            assert!(said.contains("listen.ingest = \"0.0.0.0:9477\": not a loopback address"), "{said}");
        }
        let admin = load("[listen]\nadmin = '0.0.0.0:9478'\n").unwrap_err().to_string();
        assert!(admin.contains("auth.admin = \"required\""), "{admin}");
    }

    #[test]
    fn what_is_wrong_with_a_client_is_said_at_its_table() {
        let client = |keys: &str| load(&format!("[clients.a]\n{keys}")).unwrap_err().to_string();
        for (keys, why) in [
            ("token_file = '/t'", "[clients.a]: functions is missing"),
            ("functions = 'a b#'\ntoken_file = '/t'", "\"b#\" cannot match the name of a function"),
            ("functions = '*'", "this client has no way to prove who it is"),
            ("functions = '*'\naccess_key_id = 'SOFFAAAAAAAAAAAAAAAA'", "a key pair is access_key_id and secret_file"),
            ("functions = '*'\naccess_key_id = 'A'\nsecret_file = '/s'", "not the id of a key"),
            ("functions = '*'\nsan = 'a.test'", "there is no tls.client_ca"),
            (
                "functions = '*'\nsan = 'a.test'\n[tls]\ncert = '/c'\nkey = '/k'\nclient_ca = '/a'\nlisteners = 'admin'",
                "ingest does not speak TLS",
            ),
            ("functions = '*'\nuid = 'me'", "not the numbers of users"),
            ("functions = '*'\nuid = '7 65534'", "65534 is nobody in particular"),
            ("functions = '*'\nuid = '7'\n[clients.b]\nfunctions = '*'\nuid = '7'", "\"uid 7\" stands for another"),
            ("", "s.toml:1: [clients.a]: functions is missing"),
            ("functions = '*'\ntoken = 'x'", "clients.a.token: unknown key"),
            ("functions = '*'\nsan = '127.0.0.1'", "neither a DNS name nor a URI"),
            ("functions = '*'\nsan = 'orders.shop.svc.'", "neither a DNS name nor a URI"),
            ("functions = '*'\nsan = 'a..b'", "neither a DNS name nor a URI"),
            ("functions = '*'\nsan = 'a@b.c'", "neither a DNS name nor a URI"),
            ("functions = '*'\nsan = '\u{fc}n\u{ef}.de'", "neither a DNS name nor a URI"),
            ("function = '*'", "did you mean `clients.a.functions`?"),
            ("functions = '*'\ncalls = 'yes'\ntoken_file = '/t'", "clients.a.calls = \"yes\": neither true nor false"),
        ] {
            let said = client(keys);
            assert!(said.contains(why), "{keys}: {said}");
        }
        let named = |text: &str| load(text).unwrap_err().to_string();
        assert!(named("[clients.\"a b\"]\nfunctions='*'\ntoken_file='/t'").contains("not a name for a client"));
        assert!(named("[clients.unknown]\nfunctions='*'\ntoken_file='/t'").contains("not a name for a client"));
        assert!(named("[auth]\ningest = 'required'").contains("there is no client"));
        assert!(named("[auth]\nskew = '16m'").contains("more than 15m"));
        assert!(named("clients = 1").contains("is a table, not a key"));
        let elsewhere = "[tls]\ncert='/c'\nkey='/k'\nclient_ca='/a'\nclient_required=true\nlisteners='admin'";
        assert!(named(elsewhere).contains("tls.client_required = true: ingest does not speak TLS"));
        let twice = "functions = '*'\naccess_key_id = 'SOFFAAAAAAAAAAAAAAAA'\nsecret_file = '/s'\n";
        let said = named(&format!("[clients.a]\n{twice}[clients.b]\n{twice}"));
        assert!(said.contains("[clients.b]: \"SOFFAAAAAAAAAAAAAAAA\" stands for another client already"), "{said}");
    }
}
