//! What is sold, and how much of it there is at first.

/// How much there is of what never runs out in a demonstration.
const PLENTY: i64 = 1_000_000;

pub struct Product {
    pub sku: &'static str,
    pub name: &'static str,
    pub price_cents: i64,
    pub stock: i64,
}

pub const PRODUCTS: [Product; 14] = [
    product("enamel-mug", "Enamel mug", 1_400, PLENTY),
    product("storm-lantern", "Storm lantern", 5_900, PLENTY),
    product("wool-blanket", "Wool blanket", 12_900, PLENTY),
    product("oilskin-coat", "Oilskin coat", 18_900, PLENTY),
    product("fisher-beanie", "Fisher's beanie", 2_900, PLENTY),
    product("brass-compass", "Brass compass", 4_800, PLENTY),
    product("tide-clock", "Tide clock", 8_900, PLENTY),
    product("sea-salt", "Flaked sea salt", 900, PLENTY),
    product("field-notebook", "Field notebook", 1_200, PLENTY),
    product("rope-doormat", "Rope doormat", 3_900, PLENTY),
    product("wind-kite", "Wind kite", 3_400, PLENTY),
    product("signal-flags", "Signal flags", 4_200, PLENTY),
    product("lighthouse-lamp", "Lighthouse lamp", 14_900, 40),
    product("bottle-ship", "Ship in a bottle", 24_900, 12),
];

const fn product(sku: &'static str, name: &'static str, price_cents: i64, stock: i64) -> Product {
    Product {
        sku,
        name,
        price_cents,
        stock,
    }
}
