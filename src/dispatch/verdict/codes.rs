//! What each error code of Invoke means, as data.
//!
//! From the service model of 2015-03-31 and "Common Error Types" of Lambda's API reference. Codes are matched as strings:
//! several that the wire carries are in no SDK's enumeration, and new ones come without notice.

/// What an error code says about the event, its function or the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// May pass by itself, or be the event's own fault.
    Transient,
    /// The function is being created, updated or connected: never the event's fault, and it passes by itself.
    Unready,
    /// The signature was rejected. Wrong credentials do that to every call, something between that changes a header to one.
    Rejected,
    /// One function is too fast.
    ThrottledLane,
    /// The caller is too fast.
    ThrottledCaller,
    /// Scope by the `Reason` beside it.
    ThrottledByReason,
    /// Somebody must repair this function or the permission for it.
    OperatorLane,
    /// Somebody must repair credentials, clock or account. Expired credentials and a skewed clock are here too: they heal
    /// without anybody when the SDK renews and learns, and until then no event is charged for them.
    OperatorCaller,
    /// Lambda will never take this event as it is.
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
        // The name is taken by another payload: no repetition changes that.
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
        // A sendoff's own refusal: the endpoint is a sendoff's, not Lambda's.
        ("LoopDetectedException", OperatorCaller),
        // Likely something between that spoils requests, or this one.
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
        // What the wire says; the model calls it RequestTooLargeException.
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
        // A wrong name, or a deployment that is under way: never the event's fault.
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
        // Every request has the same type, so this is one event's fault only if others get through.
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
