//! What each error code of Invoke means, as data.
//!
//! The codes are from the service model of 2015-03-31 and from "Common Error Types" in Lambda's API reference. They are
//! matched as strings, because the SDKs do not list all of them and new ones come without notice.

/// What an error code says about the event, its function or the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// May pass by itself, or may be the event's own fault.
    Transient,
    /// The function is being created, updated or connected. Never the event's fault, and it passes by itself.
    Unready,
    /// The signature was rejected. Wrong credentials cause this for every call. Something in between that changes a
    /// header causes it for one call.
    Rejected,
    /// One function is invoked too fast.
    ThrottledLane,
    /// The caller is too fast.
    ThrottledCaller,
    /// The `Reason` beside the code tells the scope.
    ThrottledByReason,
    /// Somebody must repair this function or the permission to invoke it.
    OperatorLane,
    /// Somebody must repair credentials, clock or account. This includes expired credentials and a skewed clock, which
    /// the SDK repairs by itself when it renews and learns. Until then no event is charged.
    OperatorCaller,
    /// Lambda will never accept this event as it is.
    Refused,
}

/// Sorted by code.
#[rustfmt::skip] // a table: one line a code
const CODES: &[(&str, Class)] = {
    use Class::{
        OperatorCaller, OperatorLane, Refused, Rejected, ThrottledByReason, ThrottledCaller, ThrottledLane, Transient, Unready,
    };
    &[
        ("AccessDeniedException", OperatorLane),
        ("BandwidthLimitExceeded", ThrottledCaller),
        ("CodeArtifactUserDeletedException", OperatorLane),
        ("CodeArtifactUserFailedException", OperatorLane),
        ("CodeArtifactUserPendingException", Unready),
        // Another payload has the same name. A retry does not change that.
        ("DurableExecutionAlreadyStartedException", Refused),
        ("EC2AccessDeniedException", OperatorLane),
        ("EC2ThrottledException", ThrottledLane),
        ("EC2UnexpectedException", Unready),
        ("EFSIOException", Unready),
        ("EFSMountConnectivityException", Unready),
        ("EFSMountFailureException", OperatorLane),
        ("EFSMountTimeoutException", Unready),
        ("ENILimitReachedException", OperatorLane),
        ("ENINotReadyException", Unready),
        ("ExpiredToken", OperatorCaller),
        ("ExpiredTokenException", OperatorCaller),
        ("IncompleteSignature", Rejected),
        ("IncompleteSignatureException", Rejected),
        ("InternalFailure", Transient),
        ("InternalServerError", Transient),
        ("InvalidClientTokenId", OperatorCaller),
        ("InvalidParameterValueException", Refused),
        ("InvalidRequestContentException", Refused),
        ("InvalidRuntimeException", OperatorLane),
        ("InvalidSecurityGroupIDException", OperatorLane),
        ("InvalidSignatureException", Rejected),
        ("InvalidSubnetIDException", OperatorLane),
        ("InvalidZipFileException", OperatorLane),
        ("KMSAccessDeniedException", OperatorLane),
        ("KMSDisabledException", OperatorLane),
        ("KMSInvalidStateException", OperatorLane),
        ("KMSNotFoundException", OperatorLane),
        ("LimitExceededException", ThrottledCaller),
        // Another sendoff refused the call: the endpoint is not Lambda's.
        ("LoopDetectedException", OperatorCaller),
        // Something in between probably changes requests, or this one.
        ("MalformedHttpRequestException", Transient),
        ("MissingAuthenticationToken", Rejected),
        ("MissingAuthenticationTokenException", Rejected),
        ("ModeNotSupportedException", OperatorLane),
        ("NoPublishedVersionException", OperatorLane),
        ("NotAuthorized", OperatorCaller),
        ("OptInRequired", OperatorCaller),
        ("PriorRequestNotComplete", ThrottledLane),
        ("RecursiveInvocationException", Refused),
        ("RequestAbortedException", Transient),
        // The code on the wire. The model calls it RequestTooLargeException.
        ("RequestEntityTooLargeException", Refused),
        ("RequestExpired", OperatorCaller),
        ("RequestLimitExceeded", ThrottledCaller),
        ("RequestThrottled", ThrottledCaller),
        ("RequestThrottledException", ThrottledCaller),
        ("RequestTimeTooSkewed", OperatorCaller),
        ("RequestTimeout", Transient),
        ("RequestTimeoutException", Transient),
        ("RequestTooLargeException", Refused),
        ("ResourceConflictException", Unready),
        // The name is wrong, or a deployment is under way. Never the event's fault.
        ("ResourceNotFoundException", OperatorLane),
        ("ResourceNotReadyException", Unready),
        ("RuntimeAliasDeletedException", OperatorLane),
        ("RuntimeVersionDeletedException", OperatorLane),
        ("S3FilesMountConnectivityException", Unready),
        ("S3FilesMountFailureException", OperatorLane),
        ("S3FilesMountTimeoutException", Unready),
        ("SerializedRequestEntityTooLargeException", Refused),
        ("ServiceException", Transient),
        ("ServiceQuotaExceededException", OperatorLane),
        ("ServiceUnavailable", Transient),
        ("ServiceUnavailableException", Transient),
        ("SignatureDoesNotMatch", Rejected),
        ("SlowDown", ThrottledCaller),
        ("SnapStartException", OperatorLane),
        ("SnapStartNotReadyException", Unready),
        ("SnapStartRegenerationFailureException", OperatorLane),
        ("SnapStartTimeoutException", Unready),
        ("SubnetIPAddressLimitReachedException", OperatorLane),
        ("ThrottledException", ThrottledCaller),
        ("Throttling", ThrottledCaller),
        ("ThrottlingException", ThrottledCaller),
        ("TooManyRequestsException", ThrottledByReason),
        // The endpoint is not Lambda's.
        ("UnknownOperationException", OperatorLane),
        ("UnrecognizedClientException", OperatorCaller),
        // Every request has the same type, so this is the event's fault only if others get through.
        ("UnsupportedMediaTypeException", Transient),
        ("ValidationError", Refused),
        ("ValidationException", Refused),
    ]
};

pub(super) fn class_of(code: &str) -> Option<Class> {
    CODES.binary_search_by(|(known, _)| known.cmp(&code)).ok().map(|at| CODES[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_each_code_once() {
        assert!(CODES.is_sorted_by(|(a, _), (b, _)| a < b), "binary search relies on it");
    }

    #[test]
    fn every_code_is_found_and_no_other() {
        for (code, class) in CODES {
            assert_eq!(class_of(code), Some(*class));
        }
        assert_eq!(class_of("toomanyrequestsexception"), None);
        assert_eq!(class_of(""), None);
    }
}
