-- inventory: what there is, and for whom it is put aside. available + reserved + sold = initial, always.
create table if not exists products (
    sku text primary key,
    name text not null,
    price_cents bigint not null,
    position bigint not null,
    initial bigint not null,
    available bigint not null constraint never_oversold check (available >= 0),
    reserved bigint not null default 0 check (reserved >= 0),
    sold bigint not null default 0 check (sold >= 0)
) with (fillfactor = 50);

-- key: of the attempt. A released one without lines is a tombstone: it was given up before it came.
create table if not exists reservations (
    key text primary key,
    state text not null check (state in ('reserved', 'released', 'sold')),
    lines jsonb not null default '[]',
    total_cents bigint not null default 0
) with (fillfactor = 80);

-- provider: its own ledger, as a bank would keep it. A voided one without an amount is a tombstone.
create table if not exists provider_charges (
    payment_id text primary key,
    key text not null unique,
    amount_cents bigint not null,
    state text not null check (state in ('authorized', 'voided', 'declined')),
    requests bigint not null default 1
);
create table if not exists provider_behaviour (
    single boolean primary key default true check (single),
    behaviour jsonb not null
);

-- orders. A cancelled one is a tombstone: its attempt was given up before it was placed.
create table if not exists orders (
    order_id text primary key,
    key text not null unique,
    status text not null check (status in ('placed', 'packed', 'shipped', 'cancelled')),
    items jsonb not null,
    total_cents bigint not null,
    payment_id text,
    placed_at timestamptz not null default now()
) with (fillfactor = 80);

-- checkout: an attempt belongs to its owner until its lease ends.
create table if not exists attempts (
    key text primary key,
    body_hash text not null,
    state text not null check (state in ('running', 'compensating', 'completed', 'compensated')),
    owner text not null,
    lease_until timestamptz not null,
    takeovers bigint not null default 0,
    reason text,
    order_id text,
    status smallint,
    answer jsonb,
    settled boolean not null default false,
    changed_at timestamptz not null default now()
) with (fillfactor = 80);
create index if not exists attempts_open on attempts (lease_until) where state in ('running', 'compensating');
create index if not exists attempts_unsettled on attempts (changed_at) where state = 'completed' and not settled;

create table if not exists carts (
    session text primary key,
    items jsonb not null,
    changed_at timestamptz not null default now()
) with (fillfactor = 70);

create table if not exists emails (
    order_id text not null,
    type text not null,
    sent_at timestamptz not null default now(),
    primary key (order_id, type)
);

create table if not exists shipments (
    order_id text primary key,
    state text not null check (state in ('packing', 'packed', 'shipped')),
    due timestamptz not null
) with (fillfactor = 70);
create index if not exists shipments_open on shipments (due) where state <> 'shipped';
