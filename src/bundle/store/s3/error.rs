//! Errors of the SDK.

use std::io;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

/// Describes an error of the SDK. The text never contains credentials.
pub(super) fn failed<E>(action: &str, error: SdkError<E, HttpResponse>) -> io::Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let kind = match &error {
        SdkError::TimeoutError(_) => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    let message = error.as_service_error().and_then(|error| {
        Some(match (error.code(), error.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_owned(),
            (None, message) => message?.to_owned(),
        })
    });
    let text = match (status(&error), message) {
        // A response to HEAD has no body, and therefore no error code.
        (Some(status @ (401 | 403)), message) => {
            let message = message.map(|message| format!(": {message}")).unwrap_or_default();
            format!("the store refuses these access keys (HTTP {status}){message}")
        }
        (_, Some(message)) => message,
        (status, None) => {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            let causes = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            status.map_or(causes.clone(), |status| format!("HTTP {status}: {causes}"))
        }
    };
    io::Error::new(kind, format!("cannot {action}: {text}"))
}

/// The HTTP status of an error response, if there was a response.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Whether the condition of a conditional write was not met.
pub(super) fn is_precondition_failed<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    matches!(code, Some("PreconditionFailed" | "ConditionalRequestConflict" | "412"))
}
