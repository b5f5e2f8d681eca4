//! The demo's page: a shared list. Its client is automerge-repo, in `page/vendor`.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::IntoResponse,
    routing::get,
};

/// The page loads its own files, and connects to this relay.
const POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// A file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    data: &'static [u8],
    /// Whether the data is compressed. Every browser accepts that.
    is_gzip: bool,
}

macro_rules! file {
    ($path:literal, $kind:literal, $file:literal, $is_gzip:literal) => {
        File { path: $path, kind: $kind, data: include_bytes!($file), is_gzip: $is_gzip }
    };
}

const FILES: [File; 6] = [
    file!("/demo", "text/html; charset=utf-8", "page/index.html", false),
    file!("/demo/page.css", "text/css; charset=utf-8", "page/page.css", false),
    file!("/demo/page.js", "text/javascript; charset=utf-8", "page/page.js", false),
    file!("/demo/automerge-repo.js", "text/javascript", "page/vendor/automerge-repo.js.gz", true),
    file!("/demo/automerge.wasm", "application/wasm", "page/vendor/automerge.wasm.gz", true),
    file!("/demo/licences.txt", "text/plain; charset=utf-8", "page/vendor/licences.txt", false),
];

/// The routes of the page.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(move || std::future::ready(answer(file))))
    })
}

fn answer(file: &'static File) -> impl IntoResponse {
    let fixed = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let mut headers = axum::http::HeaderMap::from_iter([
        fixed(header::CONTENT_TYPE, file.kind),
        fixed(header::CONTENT_SECURITY_POLICY, POLICY),
        // The next demo may be of another version.
        fixed(header::CACHE_CONTROL, "no-store"),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]);
    if file.is_gzip {
        headers.extend([fixed(header::CONTENT_ENCODING, "gzip")]);
    }
    (headers, file.data)
}
