//! How sendoff recognises itself: by a mark on every call it makes, and by its own addresses.
//!
//! A sendoff that delivers to itself would take its own call for a repeat, answer 202 and delete the event
//! (docs/adr/0014). The mark ends such a loop after one hop, whatever is configured. Comparing addresses finds most of
//! these mistakes at the start.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// The header that carries the mark (RFC 8586). Lambda ignores it.
pub const HEADER: HeaderName = HeaderName::from_static(HEADER_TEXT);
pub const HEADER_TEXT: &str = "cdn-loop";

/// The name that every sendoff has in [`HEADER`].
const NAME: &str = "sendoff";

/// The prefix of the headers that only a sendoff adds to its answers.
pub const ANSWER_PREFIX: &str = "x-sendoff-";

/// The mark of one process. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    id: Option<u64>,
}

/// Whose mark a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    ByThisProcess,
    ByAnother,
}

impl Hop {
    /// The mark of a process that has no listener, such as a command. No request can come back to it.
    pub const fn nameless() -> Self {
        Self { id: None }
    }

    /// The mark of a daemon. `random` distinguishes its calls from those of other daemons.
    pub fn minted(random: u128) -> Self {
        Self { id: Some(random as u64) }
    }

    /// The value of [`HEADER`] on every call. It must not be signed, because a proxy may add its own name to it.
    pub fn value(&self) -> HeaderValue {
        let text = self.id.map_or_else(|| NAME.to_owned(), |id| format!("{NAME}; id={id:016x}"));
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(NAME))
    }

    /// Whether a sendoff made this request, and if so whether it was this one.
    pub fn find(&self, headers: &HeaderMap) -> Option<Marked> {
        let texts = headers.get_all(HEADER).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let names: Vec<String> =
            texts.flat_map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
        let mut ours = names.iter().filter(|name| is_sendoff(name)).peekable();
        ours.peek()?;
        let id = self.id.map(|id| format!("id={id:016x}"));
        let is_own =
            |name: &String| id.as_ref().is_some_and(|id| name.split(';').skip(1).any(|part| part.trim() == id));
        Some(if ours.any(is_own) { Marked::ByThisProcess } else { Marked::ByAnother })
    }
}

fn is_sendoff(name: &str) -> bool {
    name.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(NAME))
}

/// Whether a request to `url` would arrive at our listener `own`. Resolves a name only if the port is ours. Resolving
/// blocks. False for a listener on port 0, which has no address yet.
pub fn points_at(url: &str, own: SocketAddr) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    if own.port() == 0 || port != own.port() {
        return false;
    }
    let name = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    // RFC 6761 section 6.3: these names mean this machine, whatever a resolver says.
    if name == "localhost" || name.ends_with(".localhost") {
        return is_own(IpAddr::from([127, 0, 0, 1]), own.ip());
    }
    // The resolver also parses unusual forms of addresses, such as 127.1 and 0x7f000001.
    let resolved = (name.as_str(), port).to_socket_addrs();
    resolved.is_ok_and(|mut addresses| addresses.any(|address| is_own(address.ip(), own.ip())))
}

/// Whether a connection to `address` reaches a listener on `own`.
fn is_own(address: IpAddr, own: IpAddr) -> bool {
    let (address, own) = (address.to_canonical(), own.to_canonical());
    // Connecting to the unspecified address connects to this machine.
    let loopback = address.is_loopback() || address.is_unspecified();
    address == own
        || (loopback && (own.is_loopback() || own.is_unspecified()))
        || (own.is_unspecified() && is_of_this_machine(address))
}

/// Whether an interface of this machine has the address. If so, the kernel chooses the address itself as the source of
/// packets to it. Sends nothing.
fn is_of_this_machine(address: IpAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip().to_canonical() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (HEADER, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_mark_of_any_sendoff_is_found_among_those_of_others() {
        let (own, other) = (Hop::minted(7), Hop::minted(8));
        let value = own.value();
        let value = value.to_str().unwrap();
        assert_eq!(value, "sendoff; id=0000000000000007");
        for (values, found) in [
            (&[][..], None),
            (&["cloudflare; subreqs=1"], None),
            (&["sendoffs, my-sendoff, foo; sendoff"], None),
            (&[value], Some(Marked::ByThisProcess)),
            (&["cdn-a", value], Some(Marked::ByThisProcess)),
            (&["cdn-a, SendOff ;id=1, cdn-b"], Some(Marked::ByAnother)),
            (&["sendoff"], Some(Marked::ByAnother)),
            (&["sendoff; id=1", value], Some(Marked::ByThisProcess)),
        ] {
            assert_eq!(own.find(&headers(values)), found, "{values:?}");
        }
        assert_eq!(other.find(&headers(&[value])), Some(Marked::ByAnother));
        assert_eq!(Hop::nameless().find(&headers(&[value])), Some(Marked::ByAnother));
    }

    #[test]
    fn every_way_to_write_our_own_address_is_seen_through() {
        for (url, address, points) in [
            ("http://127.0.0.1:9477", "127.0.0.1:9477", true),
            ("http://127.0.0.1:9477/prefix", "127.0.0.1:9477", true),
            ("http://127.9.9.9:9477", "127.0.0.1:9477", true),
            ("http://127.1:9477", "127.0.0.1:9477", true),
            ("http://0x7f000001:9477", "127.0.0.1:9477", true),
            ("http://2130706433:9477", "127.0.0.1:9477", true),
            ("http://LOCALHOST:9477", "127.0.0.1:9477", true),
            ("http://localhost.:9477", "127.0.0.1:9477", true),
            ("http://sendoff.localhost:9477", "127.0.0.1:9477", true),
            ("http://[::1]:9477/", "127.0.0.1:9477", true),
            ("http://[::ffff:127.0.0.1]:9477/", "127.0.0.1:9477", true),
            ("http://[::ffff:7f00:1]:9477/", "127.0.0.1:9477", true),
            ("http://0.0.0.0:9477", "127.0.0.1:9477", true),
            ("http://[::]:9477", "127.0.0.1:9477", true),
            ("http://localhost:9477", "[::1]:9477", true),
            ("http://localhost:9477", "0.0.0.0:9477", true),
            ("http://localhost:9477", "[::]:9477", true),
            ("http://10.0.0.5:9477", "10.0.0.5:9477", true),
            ("http://10.0.0.5:9477", "[::ffff:10.0.0.5]:9477", true),
            ("http://localhost", "127.0.0.1:80", true),
            ("https://localhost", "127.0.0.1:443", true),
            ("http://127.0.0.1:9478", "127.0.0.1:9477", false),
            ("https://localhost", "127.0.0.1:80", false),
            ("http://localhost:9477", "10.0.0.5:9477", false),
            ("http://10.0.0.6:9477", "10.0.0.5:9477", false),
            ("http://192.0.2.1:9477", "0.0.0.0:9477", false),
            ("http://lambda.eu-central-1.amazonaws.com", "127.0.0.1:9477", false),
            ("http://localhost:0", "127.0.0.1:0", false),
            ("not a url", "127.0.0.1:9477", false),
        ] {
            assert_eq!(points_at(url, address.parse().unwrap()), points, "{url} and {address}");
        }
    }

    #[test]
    fn an_address_of_an_interface_belongs_to_this_machine() {
        assert!(is_of_this_machine([127, 0, 0, 1].into()));
        assert!(!is_of_this_machine([192, 0, 2, 1].into()), "TEST-NET-1 is nobody's");
    }
}
