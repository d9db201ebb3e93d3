//! How large things may be. The same for every engine, so that what one takes another does not refuse.

/// The bounds of keys, values and transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub key_bytes: usize,
    /// As etcd, which holds 1.5 MiB per request.
    pub value_bytes: usize,
    /// Of all values of one transaction together.
    pub transaction_bytes: usize,
    /// As etcd.
    pub operations: usize,
    pub conditions: usize,
    /// Records of one page; a larger wish is cut to it.
    pub page_records: usize,
}

impl Limits {
    pub const ALL: Limits = Limits {
        key_bytes: 512,
        value_bytes: 1 << 20,
        transaction_bytes: 3 << 19,
        operations: 128,
        conditions: 128,
        page_records: 1000,
    };
}
