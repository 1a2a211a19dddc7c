//! The console: the page that the admin listener shows at `/`.
//!
//! The files below `src/admin/console/` are shipped as they are written: there is no build step. They hold no data, so
//! they are answered without a token. What the page shows comes from the operator's API, under its rules.
//! `tests/console` compares [`ASSETS`] with the folder, and `vendor/` with the published packages.

use std::io::Write;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    REFERRER_POLICY, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use sha2::{Digest as _, Sha256};

/// The document, which names all other files.
const PAGE: &str = "index.html";

/// What the page may do: load its own files, and ask its own listener. No inline script or style, no `eval`, no frame and
/// no form. Only lit-html makes HTML of text, through a Trusted Types policy of its own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types lit-html";

macro_rules! assets {
    ($($path:literal),* $(,)?) => {
        /// Every file of the console: its path below `src/admin/console/`, and its content.
        const ASSETS: &[(&str, &[u8])] = &[$(($path, include_bytes!(concat!("console/", $path)))),*];
    };
}

assets!(
    "app.css",
    "icon.svg",
    "index.html",
    "js/actions.js",
    "js/api.js",
    "js/chart.js",
    "js/dialog.js",
    "js/format.js",
    "js/keys.js",
    "js/main.js",
    "js/page.js",
    "js/payload.js",
    "js/router.js",
    "js/table.js",
    "js/toasts.js",
    "js/views/activity.js",
    "js/views/bulk.js",
    "js/views/configuration.js",
    "js/views/dead-letters.js",
    "js/views/event.js",
    "js/views/events.js",
    "js/views/function.js",
    "js/views/functions.js",
    "js/views/overview.js",
    "js/views/sign-in.js",
    "vendor/lit-html/LICENSE",
    "vendor/lit-html/directive-helpers.js",
    "vendor/lit-html/directive.js",
    "vendor/lit-html/directives/live.js",
    "vendor/lit-html/directives/repeat.js",
    "vendor/lit-html/lit-html.js",
    "vendor/uplot/LICENSE",
    "vendor/uplot/uPlot.iife.min.js",
    "vendor/uplot/uPlot.min.css",
);

/// A file as it is answered.
struct Asset {
    path: &'static str,
    kind: &'static str,
    plain: &'static [u8],
    gzip: Vec<u8>,
    /// A digest of the content, in quotes.
    etag: String,
}

/// All files, compressed once, when the first one is asked for.
static READY: LazyLock<Vec<Asset>> =
    LazyLock::new(|| ASSETS.iter().map(|(path, plain)| prepare(path, plain)).collect());

/// The routes of the page. They need no state of the daemon, so the page also loads while the daemon starts.
pub fn router() -> Router {
    Router::new().route("/", get(page)).route("/console/{*path}", get(asset))
}

async fn page(headers: HeaderMap) -> Response {
    answer(PAGE, &headers)
}

async fn asset(Path(path): Path<String>, headers: HeaderMap) -> Response {
    answer(&path, &headers)
}

fn prepare(path: &'static str, plain: &'static [u8]) -> Asset {
    let digest = Sha256::digest(plain);
    let etag = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
    Asset { path, kind: kind_of(path), plain, gzip: compressed(plain).unwrap_or_default(), etag: format!("\"{etag}\"") }
}

fn compressed(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain)?;
    encoder.finish()
}

fn kind_of(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

fn answer(path: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = READY.iter().find(|asset| asset.path == path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let is_known = has(headers, &IF_NONE_MATCH, |known| known.trim_start_matches("W/") == asset.etag || known == "*");
    let gzip = !asset.gzip.is_empty() && has(headers, &ACCEPT_ENCODING, takes_gzip);
    let mut response = match (is_known, gzip) {
        (true, _) => StatusCode::NOT_MODIFIED.into_response(),
        (false, true) => ([(CONTENT_ENCODING, "gzip")], asset.gzip.as_slice()).into_response(),
        (false, false) => asset.plain.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // A browser keeps the files and asks each time whether they have changed, so an upgrade shows at once.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Ok(etag) = HeaderValue::from_str(&asset.etag) {
        headers.insert(ETAG, etag);
    }
    response
}

/// Whether any element of a list matches.
fn has(headers: &HeaderMap, name: &HeaderName, fits: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|element| fits(element.trim()))
}

fn takes_gzip(element: &str) -> bool {
    let (coding, weight) = element.split_once(';').unwrap_or((element, ""));
    let is_refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse::<f32>() == Ok(0.0));
    coding.trim().eq_ignore_ascii_case("gzip") && !is_refused
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Bytes of all files together, compressed, at most. A page that opens at 2 a.m. over a bad line must be small.
    const BYTES_MAX: usize = 120 * 1024;

    fn files_below(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.flat_map(|path| match path.is_dir() {
            true => files_below(&path),
            false => vec![path.to_str().unwrap().to_owned()],
        });
        files.collect()
    }

    #[test]
    fn every_file_of_the_console_is_shipped_and_nothing_else_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/console");
        let prefix = format!("{}/", folder.to_str().unwrap());
        let mut there: Vec<_> =
            files_below(&folder).iter().map(|path| path.strip_prefix(&prefix).unwrap().to_owned()).collect();
        there.sort();
        let mut shipped: Vec<_> = ASSETS.iter().map(|(path, _)| (*path).to_owned()).collect();
        shipped.sort();
        assert_eq!(shipped, there, "list each file in assets!() of src/admin/console.rs");
    }

    #[test]
    fn the_console_is_small() {
        let bytes: usize = READY.iter().map(|asset| asset.gzip.len()).sum();
        assert!(bytes < BYTES_MAX, "{bytes} bytes compressed");
    }

    fn answered(path: &str, headers: &[(HeaderName, &'static str)]) -> Response {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        answer(path, &headers)
    }

    #[test]
    fn a_file_is_answered_once_and_compressed_for_those_who_take_that() {
        let plain = answered("app.css", &[]);
        assert_eq!((plain.status(), plain.headers().get(CONTENT_ENCODING)), (StatusCode::OK, None));
        for (asked, is_taken) in
            [("gzip", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false), ("", false)]
        {
            let found = answered("app.css", &[(ACCEPT_ENCODING, asked)]);
            assert_eq!(found.headers().contains_key(CONTENT_ENCODING), is_taken, "{asked}");
        }
        let etag = plain.headers()[ETAG].to_str().unwrap().to_owned().leak();
        for known in [&*etag, "*"] {
            assert_eq!(answered("app.css", &[(IF_NONE_MATCH, known)]).status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(answered("app.css", &[(IF_NONE_MATCH, "\"other\"")]).status(), StatusCode::OK);
        for path in ["", "nowhere", "../console.rs", "js", "/app.css"] {
            assert_eq!(answered(path, &[]).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn no_file_asks_for_what_the_policy_forbids() {
        let own = ASSETS.iter().filter(|(path, _)| !path.starts_with("vendor/"));
        for (path, content) in own {
            let text = std::str::from_utf8(content).unwrap();
            for word in ["innerHTML", "eval(", "new Function", " style=", "<style", "javascript:", "http://", "unsafe"]
            {
                let stays = *path == "icon.svg" && word == "http://";
                assert!(stays || !text.contains(word), "{path} has {word}");
            }
            let quotes = text.matches("https://").count();
            assert!(quotes == 0, "{path} names another site");
        }
        assert!(POLICY.starts_with("default-src 'none'") && !POLICY.contains("unsafe"));
    }
}
