//! What each error code of Invoke means, as data.
//!
//! From the service model of 2015-03-31 and "Common Error Types" of Lambda's API reference. Codes are matched as strings:
//! several that the wire carries are in no SDK's enumeration, and new ones come without notice.

/// What an error code says about the event, its function or the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// May pass by itself; counts as an attempt.
    Transient,
    /// One function is too fast.
    ThrottledLane,
    /// The account, or its caller, is too fast.
    ThrottledAccount,
    /// Scope by the `Reason` beside it.
    ThrottledByReason,
    /// Somebody must repair this function or the permission for it.
    OperatorLane,
    /// Somebody must repair credentials, clock or account. Expired credentials and a skewed clock are here too: they heal
    /// without anybody when the SDK renews and learns, and until then no event is charged for them.
    OperatorAccount,
    /// Lambda will never take this event as it is.
    Refused,
}

/// Sorted by code.
#[rustfmt::skip] // a table: one line a code
const CODES: &[(&str, Class)] = {
    use Class::{OperatorAccount, OperatorLane, Refused, ThrottledAccount, ThrottledByReason, ThrottledLane, Transient};
    &[
        ("AccessDeniedException", OperatorLane),
        ("BandwidthLimitExceeded", ThrottledAccount),
        ("CodeArtifactUserDeletedException", OperatorLane),
        ("CodeArtifactUserFailedException", OperatorLane),
        ("CodeArtifactUserPendingException", Transient),
        // The name is taken by another payload: no repetition changes that.
        ("DurableExecutionAlreadyStartedException", Refused),
        ("EC2AccessDeniedException", OperatorLane),
        ("EC2ThrottledException", ThrottledLane),
        ("EC2UnexpectedException", Transient),
        ("EFSIOException", Transient),
        ("EFSMountConnectivityException", Transient),
        ("EFSMountFailureException", OperatorLane),
        ("EFSMountTimeoutException", Transient),
        ("ENILimitReachedException", OperatorLane),
        ("ENINotReadyException", Transient),
        ("ExpiredToken", OperatorAccount),
        ("ExpiredTokenException", OperatorAccount),
        ("IncompleteSignature", OperatorAccount),
        ("IncompleteSignatureException", OperatorAccount),
        ("InternalFailure", Transient),
        ("InternalServerError", Transient),
        ("InvalidClientTokenId", OperatorAccount),
        ("InvalidParameterValueException", Refused),
        ("InvalidRequestContentException", Refused),
        ("InvalidRuntimeException", OperatorLane),
        ("InvalidSecurityGroupIDException", OperatorLane),
        ("InvalidSignatureException", OperatorAccount),
        ("InvalidSubnetIDException", OperatorLane),
        ("InvalidZipFileException", OperatorLane),
        ("KMSAccessDeniedException", OperatorLane),
        ("KMSDisabledException", OperatorLane),
        ("KMSInvalidStateException", OperatorLane),
        ("KMSNotFoundException", OperatorLane),
        ("LimitExceededException", ThrottledAccount),
        // A sendoff's own refusal: the endpoint is a sendoff's, not Lambda's.
        ("LoopDetectedException", OperatorAccount),
        // Likely something between that spoils requests: charged, so that it ends, but not at once.
        ("MalformedHttpRequestException", Transient),
        ("MissingAuthenticationToken", OperatorAccount),
        ("MissingAuthenticationTokenException", OperatorAccount),
        ("ModeNotSupportedException", OperatorLane),
        ("NoPublishedVersionException", OperatorLane),
        ("NotAuthorized", OperatorAccount),
        ("OptInRequired", OperatorAccount),
        ("PriorRequestNotComplete", ThrottledLane),
        ("RecursiveInvocationException", Refused),
        ("RequestAbortedException", Transient),
        // What the wire says; the model calls it RequestTooLargeException.
        ("RequestEntityTooLargeException", Refused),
        ("RequestExpired", OperatorAccount),
        ("RequestLimitExceeded", ThrottledAccount),
        ("RequestThrottled", ThrottledAccount),
        ("RequestThrottledException", ThrottledAccount),
        ("RequestTimeTooSkewed", OperatorAccount),
        ("RequestTimeout", Transient),
        ("RequestTimeoutException", Transient),
        ("RequestTooLargeException", Refused),
        ("ResourceConflictException", Transient),
        // A wrong name, or a deployment that is under way: never the event's fault.
        ("ResourceNotFoundException", OperatorLane),
        ("ResourceNotReadyException", Transient),
        ("RuntimeAliasDeletedException", OperatorLane),
        ("RuntimeVersionDeletedException", OperatorLane),
        ("S3FilesMountConnectivityException", Transient),
        ("S3FilesMountFailureException", OperatorLane),
        ("S3FilesMountTimeoutException", Transient),
        ("SerializedRequestEntityTooLargeException", Refused),
        ("ServiceException", Transient),
        ("ServiceQuotaExceededException", OperatorLane),
        ("ServiceUnavailable", Transient),
        ("ServiceUnavailableException", Transient),
        ("SignatureDoesNotMatch", OperatorAccount),
        ("SlowDown", ThrottledAccount),
        ("SnapStartException", OperatorLane),
        ("SnapStartNotReadyException", Transient),
        ("SnapStartRegenerationFailureException", OperatorLane),
        ("SnapStartTimeoutException", Transient),
        ("SubnetIPAddressLimitReachedException", OperatorLane),
        ("ThrottledException", ThrottledAccount),
        ("Throttling", ThrottledAccount),
        ("ThrottlingException", ThrottledAccount),
        ("TooManyRequestsException", ThrottledByReason),
        // The endpoint is not Lambda's.
        ("UnknownOperationException", OperatorLane),
        ("UnrecognizedClientException", OperatorAccount),
        ("UnsupportedMediaTypeException", Refused),
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
