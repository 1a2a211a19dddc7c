use aws_smithy_runtime_api::http::Request;

use super::*;
use crate::aws::testing::{Act, Server, say};

fn wire(outside: Outside) -> Wire {
    Wire::new(&outside, None)
}

fn settings() -> HttpConnectorSettings {
    HttpConnectorSettings::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(5))
        .build()
}

async fn get(wire: &Wire, url: &str) -> Result<u16, String> {
    let request = Request::try_from(http::Request::get(url).body(SdkBody::empty()).unwrap()).unwrap();
    let answer = wire.connector(settings()).call(request).await;
    answer.map(|answer| answer.status().as_u16()).map_err(|error| crate::aws::words_of(&error))
}

#[tokio::test]
async fn a_plain_request_names_its_server_to_the_proxy_and_shows_it_the_password() {
    let proxy = Server::start([say("200 OK", &[], "")]).await;
    let url = proxy.url.replace("http://", "http://me:secret@");
    let wire = wire(Outside { http_proxy: Some(url), ..Outside::default() });
    assert_eq!(get(&wire, "http://lambda.example/path").await, Ok(200));
    let seen = proxy.seen().remove(0);
    assert!(seen.head.starts_with("GET http://lambda.example/path HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.header("proxy-authorization"), Some("Basic bWU6c2VjcmV0"));
}

#[tokio::test]
async fn a_tunnel_is_asked_for_with_the_password_and_what_the_proxy_says_is_told() {
    let proxy = Server::start([say("407 Proxy Authentication Required", &[], "")]).await;
    let url = proxy.url.replace("http://", "http://me:secret@");
    let wire = wire(Outside { https_proxy: Some(url), ..Outside::default() });
    let why = get(&wire, "https://lambda.example/").await.unwrap_err();
    assert!(why.contains("proxy") && !why.contains("secret"), "{why}");
    let seen = proxy.seen().remove(0);
    assert!(seen.head.starts_with("CONNECT lambda.example:443 HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.header("proxy-authorization"), Some("Basic bWU6c2VjcmV0"));
}

#[tokio::test]
async fn what_is_near_or_named_in_no_proxy_is_reached_without_one() {
    let server = Server::start([say("200 OK", &[], "")]).await;
    let outside = Outside {
        all_proxy: Some("http://127.0.0.1:1".to_owned()),
        no_proxy: Some(".internal, 10.0.0.0/8,lambda.example".to_owned()),
        ..Outside::default()
    };
    assert_eq!(get(&wire(outside.clone()), &server.url).await, Ok(200), "loopback");
    let proxies = Proxies::new(&outside);
    for (url, direct) in [
        ("https://vpce.internal/", true),
        ("https://10.9.8.7/", true),
        ("https://lambda.example/", true),
        ("http://169.254.169.254/latest", true),
        ("https://lambda.eu-central-1.amazonaws.com/", false),
        ("http://11.0.0.1/", false),
    ] {
        assert_eq!(proxies.of(&url.parse().unwrap()).is_none(), direct, "{url}");
    }
}

/// Whether the kernel's timer of a connection to that port is the one of keepalive (proc_pid_net(5), `tr`).
fn is_kept_alive(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let to = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns[2].ends_with(&to) && columns[5].starts_with("02:")
    })
}

#[tokio::test]
async fn a_connection_that_waits_for_an_answer_is_kept_alive() {
    let server = Server::start([Act::Hang]).await;
    let port = server.url.parse::<http::Uri>().unwrap().port_u16().unwrap();
    let (wire, url) = (wire(Outside::default()), server.url.clone());
    let mut call = Box::pin(async move { get(&wire, &url).await });
    while server.seen().is_empty() || !is_kept_alive(port) {
        assert!(futures_util::poll!(&mut call).is_pending(), "no keepalive until the call was given up");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_that_gave_no_answer_is_not_used_again() {
    let server = Server::start([Act::Hang, say("200 OK", &[], "")]).await;
    let wire = wire(Outside::default());
    let short = HttpConnectorSettings::builder().read_timeout(Duration::from_millis(100)).build();
    let request = Request::try_from(http::Request::get(&server.url).body(SdkBody::empty()).unwrap()).unwrap();
    let error = wire.connector(short).call(request).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(get(&wire, &server.url).await, Ok(200));
    assert_eq!(server.seen().len(), 2);
}
