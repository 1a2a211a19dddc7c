use http::{HeaderValue, Method, Request};

use super::*;
use crate::http::peer::Identity;
use crate::ingest::lambda_api::tests::settings;

const PATH_TOKEN: &str = "path-token-0123456789012345678901234567";
const TOKEN: &str = "bearer-token-0123456789012345678901234567";
const SECRET: &str = "secret-key-0123456789012345678901234567";
const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

/// One client for each way, named after it.
fn clients(files: &tempfile::TempDir, required: bool) -> Clients {
    let file = |name: &str, secret: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        Some(path)
    };
    let client = |name: &str, ways| {
        (
            Client { name: name.to_owned(), functions: vec!["orders-*".to_owned()], calls: false, hands_over: false },
            ways,
        )
    };
    Clients {
        required,
        skew: Duration::from_secs(300),
        clients: vec![
            client("path", Ways { path_token_file: file("a", PATH_TOKEN), ..Ways::default() }),
            client("bearer", Ways { token_file: file("b", TOKEN), ..Ways::default() }),
            client(
                "signature",
                Ways {
                    access_key_id: Some("SOFFAAAAAAAAAAAAAAAA".to_owned()),
                    secret_file: file("c", SECRET),
                    ..Ways::default()
                },
            ),
            client("certificate", Ways { names: vec!["spiffe://shop.test/orders".to_owned()], ..Ways::default() }),
        ],
    }
}

fn head(target: &str, headers: &[(&str, &str)]) -> Head {
    let request = headers.iter().fold(Request::post(target), |request, (name, value)| request.header(*name, *value));
    request.body(()).unwrap().into_parts().0
}

/// The name of whoever calls, or "anyone"; or why nobody is known.
fn who(directory: &Directory, head: &mut Head) -> Result<String, Unidentified> {
    directory.identify(head, NOW, None).map(|caller| match caller.client() {
        Some(client) => client.name.clone(),
        None => "anyone".to_owned(),
    })
}

#[test]
fn each_way_names_its_client_and_the_first_that_is_present_decides() {
    let files = tempfile::tempdir().unwrap();
    for required in [false, true] {
        let (_, directory) = clients(&files, required).load().unwrap();
        let bearer = format!("Bearer {TOKEN}");
        let mut by_path = head(&format!("/c/{PATH_TOKEN}/2015-03-31/functions/f/invocations?Qualifier=1"), &[]);
        assert_eq!(who(&directory, &mut by_path), Ok("path".to_owned()));
        assert_eq!(by_path.uri, "/2015-03-31/functions/f/invocations?Qualifier=1", "the secret is gone");
        assert_eq!(who(&directory, &mut head("/v1/events", &[("authorization", &bearer)])), Ok("bearer".to_owned()));
        let lower = bearer.replace("Bearer", "bearer");
        assert_eq!(who(&directory, &mut head("/v1/events", &[("authorization", &lower)])), Ok("bearer".to_owned()));
        let mut certified = head("/v1/events", &[("authorization", "Bearer nonsense")]);
        certified.extensions.insert(Peer::named(vec!["a".to_owned(), "spiffe://shop.test/orders".to_owned()]));
        assert_eq!(who(&directory, &mut certified), Ok("certificate".to_owned()));
        let mut both = head(&format!("/c/{PATH_TOKEN}"), &[("authorization", &bearer)]);
        assert_eq!((who(&directory, &mut both), both.uri.path()), (Ok("path".to_owned()), "/"));
        let mut slashes = head(&format!("/c/{PATH_TOKEN}//v1/events"), &[]);
        assert_eq!((who(&directory, &mut slashes), slashes.uri.path()), (Ok("path".to_owned()), "/v1/events"));
    }
}

#[test]
fn whoever_is_nobody_is_refused_where_that_is_asked_and_wrong_secrets_always_are() {
    let files = tempfile::tempdir().unwrap();
    let foreign = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-central-1/lambda/aws4_request, SignedHeaders=host, Signature=00";
    let unreadable = "AWS4-HMAC-SHA256 nonsense";
    for required in [false, true] {
        let (_, directory) = clients(&files, required).load().unwrap();
        let anyone = |refused: Unidentified| if required { Err(refused) } else { Ok("anyone".to_owned()) };
        let of = |target: &str, headers: &[(&str, &str)]| who(&directory, &mut head(target, headers));
        assert_eq!(of("/v1/events", &[]), anyone(Unidentified::Missing));
        assert_eq!(of("/v1/events", &[("authorization", foreign)]), anyone(Unidentified::Unknown));
        assert_eq!(of("/v1/events", &[("authorization", "Basic eDp5")]), anyone(Unidentified::Unknown));
        let said = of("/v1/events", &[("authorization", unreadable)]);
        assert!(if required { matches!(said, Err(Unidentified::Flawed(Flaw::Malformed(_)))) } else { said.is_ok() });
        assert_eq!(of("/v1/events", &[("authorization", "Bearer wrong")]), Err(Unidentified::Unknown));
        assert_eq!(of("/v1/events", &[("authorization", "Bearer ")]), Err(Unidentified::Unknown));
        for path in ["/c/wrong/v1/events", "/c//v1/events", "/c/", &format!("/c/{PATH_TOKEN}x/v1/events")] {
            assert_eq!(of(path, &[]), Err(Unidentified::Unknown), "{path}");
        }
        let known = foreign.replace("AKIDEXAMPLE", "SOFFAAAAAAAAAAAAAAAA");
        let said = of("/v1/events", &[("authorization", &known), ("host", "a"), ("x-amz-date", "20260921T134640Z")]);
        assert!(matches!(said, Err(Unidentified::Flawed(_))), "a key of ours is not passed over: {said:?}");
        let token = [("authorization", known.as_str()), ("x-amz-security-token", "t")];
        assert_eq!(of("/v1/events", &token), Err(Unidentified::Unknown));
    }
}

#[test]
fn behind_the_permissions_of_a_file_nobody_needs_another_proof() {
    let files = tempfile::tempdir().unwrap();
    let (_, directory) = clients(&files, true).load().unwrap();
    let caller = |headers: &[(&str, &str)]| directory.identify(&mut head("/v1/events", headers), NOW, Some(1000));
    assert!(matches!(caller(&[]), Ok(Caller::Anyone)));
    assert!(matches!(caller(&[("authorization", "Bearer wrong")]), Err(Unidentified::Unknown)));
    assert!(matches!(caller(&[("authorization", &format!("Bearer {TOKEN}"))]), Ok(Caller::Known(_))));
}

#[test]
fn secrets_that_stand_for_two_or_cannot_be_used_are_named_by_key_and_file() {
    let files = tempfile::tempdir().unwrap();
    let mut clients = clients(&files, true);
    let (digest, _) = clients.load().unwrap();
    assert_eq!(clients.load().unwrap().0, digest);
    std::fs::write(files.path().join("b"), format!("{TOKEN}\n{TOKEN}2\n")).unwrap();
    assert_ne!(clients.load().unwrap().0, digest, "a change is seen");

    clients.clients[3].1.token_file = Some(files.path().join("b"));
    let bad = clients.load().map(drop).unwrap_err();
    assert!(bad.key == "clients.certificate.token_file" && bad.why.contains("stands for a client already"), "{bad}");
    clients.clients[3].1.token_file = None;
    std::fs::write(files.path().join("a"), format!("{PATH_TOKEN}/\n")).unwrap();
    let bad = clients.load().map(drop).unwrap_err();
    assert!(bad.key == "clients.path.path_token_file" && bad.why.contains("-._~"), "{bad}");
    assert!(!bad.to_string().contains(PATH_TOKEN));
}

#[test]
fn a_client_uses_what_its_patterns_name_and_passes_what_concerns_them() {
    let client = |functions: &str, calls| {
        let functions = functions.split(' ').map(str::to_owned).collect();
        Client { name: "c".to_owned(), functions, calls, hands_over: false }
    };
    let one = client("orders-* invoices", true);
    for (function, may) in [
        ("orders-eu", true),
        ("invoices", true),
        ("invoices:prod", false),
        ("mails", false),
        ("us-east-1/invoices", false),
    ] {
        assert_eq!(one.may_use(&FunctionName::new(function)), may, "{function}");
    }
    let may = |client: &Client, target: &str| client.may_pass(&Method::GET, &target.parse().unwrap(), &settings().home);
    assert!(may(&one, "/2015-03-31/functions/invoices"));
    assert!(may(&one, "/2015-03-31/functions/orders-eu/configuration"));
    assert!(may(&one, "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-central-1%3A123456789012%3Afunction%3Ainvoices"));
    assert!(may(&one, "/2015-03-31/functions/invoices?Qualifier=$LATEST"));
    assert!(may(&client("invoices invoices:*", true), "/2015-03-31/functions/invoices:7?Qualifier=prod&Marker=x"));
    for path in [
        "/2015-03-31/functions/invoices?Qualifier=prod",
        "/2015-03-31/functions/invoices:prod",
        "/2015-03-31/functions/invoices?x=1&%51ualifier=pro%64",
        "/2015-03-31/functions/invoices?Qualifier=$LATEST&Qualifier=prod",
        "/2015-03-31/functions/invoices:prod?Qualifier=$LATEST",
        "/2015-03-31/functions/invoices?qualifier=prod",
        "/2015-03-31/functions/mails",
        "/2015-03-31/functions/",
        "/2015-03-31/functions/orders-eu/../mails",
        "/2015-03-31/functions/orders-eu/%2e%2E/mails",
        "/2017-03-31/tags/invoices",
        "/2017-03-31/tags/mails/functions/invoices",
        "/2018-10-31/layers/mails/functions/invoices/versions",
        "/2015-03-31/event-source-mappings/",
    ] {
        assert!(!may(&one, path), "{path}");
        assert!(may(&client("invoices *", true), path), "{path}");
        assert!(!may(&client("*", false), path), "{path}");
    }
}

#[test]
fn a_qualifier_narrows_nothing_where_lambda_takes_none() {
    let client = |functions: &str, calls| {
        let functions = functions.split(' ').map(str::to_owned).collect();
        Client { name: "c".to_owned(), functions, calls, hands_over: false }
    };
    let one = client("invoices:prod", true);
    let may = |method: Method, target: &str| one.may_pass(&method, &target.parse().unwrap(), &settings().home);
    for target in ["invoices?Qualifier=prod", "invoices:prod/configuration", "invoices/policy/?Qualifier=prod"] {
        assert!(may(Method::GET, &format!("/2015-03-31/functions/{target}")), "{target}");
    }
    for (method, target) in [
        (Method::PUT, "invoices/code?Qualifier=prod"),
        (Method::PUT, "invoices:prod/code"),
        (Method::PUT, "invoices/concurrency?Qualifier=prod"),
        (Method::POST, "invoices/versions?Qualifier=prod"),
        (Method::DELETE, "invoices/aliases/dev?Qualifier=prod"),
        (Method::DELETE, "invoices?Qualifier=prod"),
        (Method::GET, "invoices/aliases/dev?Qualifier=prod"),
        (Method::GET, "invoices:prod/versions"),
    ] {
        assert!(!may(method.clone(), &format!("/2015-03-31/functions/{target}")), "{method} {target}");
        let whole = client("invoices invoices:*", true);
        let path = format!("/2015-03-31/functions/{target}");
        assert!(whole.may_pass(&method, &path.parse().unwrap(), &settings().home), "{method} {target}");
    }
}

#[test]
fn what_is_shown_of_a_caller_has_no_secret_in_it() {
    let files = tempfile::tempdir().unwrap();
    let (_, directory) = clients(&files, true).load().unwrap();
    let mut by_bearer = head("/v1/events", &[]);
    by_bearer.headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {TOKEN}")).unwrap());
    let caller = directory.identify(&mut by_bearer, NOW, None).unwrap();
    assert_eq!(format!("{caller:?}"), "Caller(Some(\"bearer\"))");
}

#[test]
fn users_of_the_socket_are_clients_and_then_its_permissions_let_in_nobody_else_but_root_and_the_daemon() {
    let files = tempfile::tempdir().unwrap();
    let of = |directory: &Directory, uid: u32, behind| {
        let mut head = head("/v1/events", &[]);
        head.extensions.insert(Peer::known(Identity { uid: Some(uid), ..Identity::default() }));
        directory.identify(&mut head, NOW, behind).map(|caller| caller.client().map(|client| client.name.clone()))
    };
    for required in [false, true] {
        let mut clients = clients(&files, required);
        let behind = Some(1000);
        let (_, all) = clients.load().unwrap();
        assert_eq!(of(&all, 7, behind), Ok(None), "the permissions of the file are proof enough");
        clients.clients[3].1.uids = vec![7, 8];
        let (_, directory) = clients.load().unwrap();
        assert_eq!(of(&directory, 8, behind), Ok(Some("certificate".to_owned())));
        assert_eq!(of(&directory, 0, behind), Ok(None));
        assert_eq!(of(&directory, 1000, behind), Ok(None));
        assert_eq!(of(&directory, 9, behind), if required { Err(Unidentified::Missing) } else { Ok(None) });
    }
}

#[test]
fn a_change_of_a_table_alone_is_seen() {
    let files = tempfile::tempdir().unwrap();
    let mut clients = clients(&files, true);
    let (before, _) = clients.load().unwrap();
    clients.clients[0].0.functions = vec!["mails".to_owned()];
    assert_ne!(clients.load().unwrap().0, before);
    assert!(!Clients::default().load().unwrap().1.matters());
}
