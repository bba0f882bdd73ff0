//! Kinds that are asked and never kept: reviews of tokens, users and access, and requests for tokens.

use crate::kind::{Entry, Kind};

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

static TOKEN_REVIEW: Kind = Kind::Listed(&Entry {
    namespaced: false,
    ..Entry::of(AUTHENTICATION, "v1", ("TokenReview", "TokenReviewList"), ("tokenreviews", "tokenreview"))
});
static SELF_SUBJECT_REVIEW: Kind = Kind::Listed(&Entry {
    namespaced: false,
    ..Entry::of(
        AUTHENTICATION,
        "v1",
        ("SelfSubjectReview", "SelfSubjectReviewList"),
        ("selfsubjectreviews", "selfsubjectreview"),
    )
});
static LOCAL_ACCESS: Kind = Kind::Listed(&Entry::of(
    AUTHORIZATION,
    "v1",
    ("LocalSubjectAccessReview", "LocalSubjectAccessReviewList"),
    ("localsubjectaccessreviews", "localsubjectaccessreview"),
));
static SELF_ACCESS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    ..Entry::of(
        AUTHORIZATION,
        "v1",
        ("SelfSubjectAccessReview", "SelfSubjectAccessReviewList"),
        ("selfsubjectaccessreviews", "selfsubjectaccessreview"),
    )
});
static SELF_RULES: Kind = Kind::Listed(&Entry {
    namespaced: false,
    ..Entry::of(
        AUTHORIZATION,
        "v1",
        ("SelfSubjectRulesReview", "SelfSubjectRulesReviewList"),
        ("selfsubjectrulesreviews", "selfsubjectrulesreview"),
    )
});
static ACCESS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    ..Entry::of(
        AUTHORIZATION,
        "v1",
        ("SubjectAccessReview", "SubjectAccessReviewList"),
        ("subjectaccessreviews", "subjectaccessreview"),
    )
});

/// What is asked by a POST to its collection, and answered.
pub static REVIEWS: &[&Kind] =
    &[&SELF_SUBJECT_REVIEW, &TOKEN_REVIEW, &LOCAL_ACCESS, &SELF_ACCESS, &SELF_RULES, &ACCESS];

static REQUEST: Kind = Kind::Listed(&Entry::of(
    AUTHENTICATION,
    "v1",
    ("TokenRequest", "TokenRequestList"),
    ("tokenrequests", "tokenrequest"),
));

/// What the subresource `token` of service accounts speaks; it has no collection of its own.
pub static TOKEN_REQUEST: &Kind = &REQUEST;

/// The review behind a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    REVIEWS.iter().copied().find(|k| k.group() == group && k.version() == version && k.plural() == plural)
}
