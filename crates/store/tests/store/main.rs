//! Every engine against the one contract; the embedded one also against histories and power losses.

mod conformance;
mod engines;
