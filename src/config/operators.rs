//! Who may use the operator's API: `[auth]`, and the tables of `[operators]`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Listen;
use super::raw::OPERATORS;
use super::read::Reader;
use super::tls::Tls;
use crate::admin::operators::{ANYONE, DAEMON, Operator, Operators, ROOT, Role, UNKNOWN, Ways};

/// Every request is compared with the secrets of all of them.
const OPERATORS_MAX: usize = 1_000;

/// The name of an operator, in characters; it is a label of metrics.
const NAME_CHARS_MAX: usize = 64;

/// Whether every caller of the operator's API must be a known operator.
pub fn required(r: &mut Reader) -> Option<bool> {
    r.word("auth.admin", &[("none", false), ("required", true)])
}

pub fn read(r: &mut Reader, required: Option<bool>, listen: Option<&Listen>, tls: Option<&Tls>) -> Option<Operators> {
    let metrics = r.boolean("auth.metrics");
    let read_only = r.boolean("auth.read_only");
    let tables = r.values().tables(OPERATORS).to_vec();
    let has_socket = listen.is_none_or(|listen| listen.admin_unix.is_some());
    let has_authority = tls.is_some_and(|tls| tls.on_admin && tls.files.client_ca.is_some());
    let mut taken = BTreeSet::new();
    let operators: Vec<_> = r.live(|r| tables.iter().map(|(name, table)| operator(r, name, table)).collect());
    for (operator, (_, table)) in operators.iter().zip(&tables) {
        let Some((_, ways)) = operator else { continue };
        let proofs = ways.names.iter().cloned().chain(ways.uids.iter().map(|uid| format!("uid {uid}")));
        for proof in proofs {
            if !taken.insert(proof.clone()) {
                let hint = "give each operator its own";
                r.refuse_table(table, &format!("{proof:?} stands for another operator already"), hint);
            }
        }
        if !ways.names.is_empty() && !has_authority {
            let hint = "name the file of the authority of operators' certificates as tls.client_ca, and list \"admin\" in \
                        tls.listeners";
            r.refuse::<()>(&format!("{table}.san"), "the admin listener asks for no certificate", Some(hint));
        }
        if !ways.uids.is_empty() && !has_socket {
            let hint = "set listen.admin_unix";
            r.refuse::<()>(&format!("{table}.uid"), "there is no socket for operators", Some(hint));
        }
    }
    if let Some((_, table)) = tables.get(OPERATORS_MAX) {
        r.refuse_table(table, &format!("more than {OPERATORS_MAX} operators"), "let some share a table");
    }
    Some(Operators {
        required: required?,
        read_only: read_only?,
        metrics: metrics?,
        operators: operators.into_iter().collect::<Option<_>>()?,
    })
}

/// The keys of one table.
fn operator(r: &mut Reader, name: &str, table: &str) -> Option<(Operator, Ways)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_ours = [ANYONE, UNKNOWN, ROOT, DAEMON].contains(&name);
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || !name.chars().all(is_name) || is_ours {
        let hint = "use letters, digits and -_. , at most 64 of them, and none of anyone, unknown, root, sendoff";
        r.refuse_table(table, "not a name for an operator", hint);
        return None;
    }
    let is_there = |r: &Reader, key: &str| r.values().find(key).is_some();
    let role = format!("{table}.role");
    let words = [("read", Role::Read), ("operate", Role::Operate)];
    let role = if is_there(r, &role) { r.word(&role, &words) } else { Some(Role::Read) };
    let payloads = format!("{table}.payloads");
    let payloads = if is_there(r, &payloads) { r.boolean(&payloads) } else { Some(false) };
    let mut text = |key: &str| {
        let key = format!("{table}.{key}");
        if is_there(r, &key) { r.optional(&key) } else { Some(None) }
    };
    let [token_file, san, uid] = ["token_file", "san", "uid"].map(&mut text);
    let uids = super::clients::users(r, table, &uid?.unwrap_or_default())?;
    let names = super::clients::names_of_certificates(r, table, &san?.unwrap_or_default());
    let ways = Ways { token_file: token_file?.map(PathBuf::from), names, uids };
    if ways == Ways::default() {
        r.refuse_table(table, "there is nothing to know this operator by", "give it token_file, san or uid");
    }
    Some((Operator { name: name.to_owned(), role: role?, payloads: payloads? }, ways))
}

#[cfg(test)]
mod tests {
    use crate::admin::operators::Role;
    use crate::config::raw::Document;
    use crate::config::{Environment, Flags, Loaded, Problems, check_layers};

    fn load(text: &str) -> Result<Loaded, Problems> {
        let environment = Environment::from_pairs(&[("HOME", "/h"), ("SENDOFF_ADMIN_TOKEN_FILE", "/t")]);
        check_layers(Some(Document { name: "s.toml", text }), &environment, &Flags::default())
    }

    #[test]
    fn operators_have_roles_and_ways_to_be_known() {
        let file = "[listen]\nadmin_unix = '/run/s/admin.sock'\n[auth]\nadmin = 'required'\n[operators.oncall]\n\
                    role = 'operate'\npayloads = true\ntoken_file = '/t'\n[operators.board]\nuid = '7 8'\n";
        let operators = load(file).unwrap().config.operators;
        assert!(operators.required && !operators.read_only && !operators.metrics);
        let [(oncall, _), (board, ways)] = &operators.operators[..] else { panic!("{operators:?}") };
        assert_eq!((oncall.name.as_str(), oncall.role, oncall.payloads), ("oncall", Role::Operate, true));
        assert_eq!((board.role, board.payloads, &ways.uids[..]), (Role::Read, false, &[7, 8][..]));
    }

    #[test]
    fn under_systemd_the_socket_is_in_the_directory_of_the_service() {
        let environment = Environment::from_pairs(&[("HOME", "/h"), ("RUNTIME_DIRECTORY", "/run/sendoff:/run/other")]);
        let socket = |text: &str| {
            let document = Some(Document { name: "s.toml", text });
            let listen = check_layers(document, &environment, &Flags::default()).unwrap().config.listen;
            listen.admin_unix.unwrap().path.display().to_string()
        };
        assert_eq!(socket(""), "/run/sendoff/admin.sock");
        assert_eq!(socket("[listen]\nadmin_unix = '/x'\n"), "/x");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_do() {
        for (text, why) in [
            ("[operators.a]\nrole = 'read'\n", "nothing to know this operator by"),
            ("[operators.a]\nuid = '7'\n", "set listen.admin_unix"),
            ("[listen]\nadmin_unix = '/s'\n[operators.a]\nuid = 'me'\n", "not the numbers of users"),
            ("[listen]\nadmin_unix = '/s'\n[operators.a]\nuid = '7'\n[operators.b]\nuid = '7'\n", "stands for another"),
            ("[operators.a]\n", "s.toml:1: [operators.a]: there is nothing to know this operator by"),
            ("[listen]\nadmin_unix = '/s'\n[operators.a]\nuid = '65534'\n", "65534 is nobody in particular"),
            ("[operators.a]\nsan = 'a.test'\n", "asks for no certificate"),
            ("[operators.root]\ntoken_file = '/t'\n", "not a name for an operator"),
            ("[operators.a]\nrole = 'admin'\ntoken_file = '/t'\n", "\"operate\""),
            ("[operators.a]\ntoken_fil = '/t'\n", "did you mean `operators.a.token_file`"),
            ("[listen]\nadmin = '0.0.0.0:9478'\n", "auth.admin = \"required\""),
            ("[listen]\nunix = '/s'\nadmin_unix = '/s'\n", "is the same path as"),
        ] {
            let said = load(text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
