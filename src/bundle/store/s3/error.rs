//! Errors of the SDK.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::storage::{Failure, Location, StorageError};

/// The error of a request for an object or a bucket. The text never contains credentials.
pub(super) fn failed<E>(
    action: &'static str,
    object: &str,
    error: SdkError<E, HttpResponse>,
) -> StorageError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
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
            let lacks_keys = causes.clone().any(|cause| {
                matches!(
                    cause.downcast_ref(),
                    Some(
                        CredentialsError::CredentialsNotLoaded(_)
                            | CredentialsError::ProviderError(_)
                    )
                )
            });
            let causes = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            let causes = match lacks_keys {
                true => format!(
                    "no access keys were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                     the systemd credential aws-credentials: {causes}"
                ),
                false => causes,
            };
            status.map_or(causes.clone(), |status| format!("HTTP {status}: {causes}"))
        }
    };
    unavailable(action, object, text)
}

/// The error of a store that does not do what it is asked for, such as in time.
pub(super) fn unavailable(
    action: &'static str,
    object: &str,
    reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StorageError {
    StorageError::Unavailable(Failure::new(action, Location::Object(object.to_owned()), reason))
}

/// The error of a store whose answer is not what it has to be.
pub(super) fn bad_answer(action: &'static str, object: &str, reason: &str) -> StorageError {
    StorageError::BadAnswer(Failure::new(action, Location::Object(object.to_owned()), reason))
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
