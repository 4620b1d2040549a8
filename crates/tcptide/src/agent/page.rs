//! The web page at `/`: `web/`, bundled by `build.rs`. All that it shows it asks the API for.

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::gauge::Gauge;

/// What a browser may do with the page: load what comes from here, and nothing else from anywhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

#[cfg(feature = "web")]
macro_rules! file {
    ($path:literal, $name:literal, $kind:literal) => {
        File { path: $path, kind: $kind, content: include_str!(concat!(env!("OUT_DIR"), "/web/", $name)) }
    };
}

#[cfg(feature = "web")]
const FILES: &[File] = &[
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!("/app.js", "app.js", "text/javascript; charset=utf-8"),
    file!("/app.css", "app.css", "text/css; charset=utf-8"),
    file!("/licenses.txt", "licenses.txt", "text/plain; charset=utf-8"),
];
/// What tells one build of the page from another.
#[cfg(feature = "web")]
const VERSION: &str = include_str!(concat!(env!("OUT_DIR"), "/web/version"));

#[cfg(not(feature = "web"))]
const FILES: &[File] = &[File {
    path: "/",
    kind: "text/plain; charset=utf-8",
    content: "This tcptide was built without its web page. There are /metrics, /api/v1/openapi.json and /-/healthy.\n",
}];
#[cfg(not(feature = "web"))]
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Each file at its path.
pub(super) fn router() -> Router<Gauge> {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(async |headers: HeaderMap| answer(file, &headers)))
    })
}

fn answer(file: &File, headers: &HeaderMap) -> Response {
    // Weak: the same in other bytes where it is compressed.
    let tag = format!("W/\"{VERSION}\"");
    let is_known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    let is_known = is_known.flat_map(|known| known.split(',')).any(|known| known.trim() == tag);
    let mut answer = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, file.kind)], file.content).into_response()
    };
    let told: [(HeaderName, &str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // An agent may be a newer one by the next time.
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, &tag),
    ];
    let told = told.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?)));
    answer.headers_mut().extend(told);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_has_it_is_not_sent_again() {
        let first = answer(&FILES[0], &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("W/\"another\""));
        assert_eq!(answer(&FILES[0], &headers).status(), StatusCode::OK);
        headers.append(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        let again = answer(&FILES[0], &headers);
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(again.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }

    #[cfg(feature = "web")]
    #[test]
    fn the_page_is_small_and_needs_nothing_from_elsewhere() {
        let size: usize = FILES.iter().map(|file| file.content.len()).sum();
        assert!(size < 300 * 1024, "{size}");
        for file in &FILES[..3] {
            let elsewhere = file.content.replace("http://www.w3.org/", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{}", file.path);
        }
    }
}
