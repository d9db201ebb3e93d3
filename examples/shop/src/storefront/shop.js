// The shop in a browser. What is in the cart is kept by the cart service; an attempt at checkout keeps its key until it has an end, so
// asking again, also after a reload, never buys twice.

import { pictures, blurbs } from "/pictures.js";
import { coast, voyage } from "/scenes.js";

const $ = (id) => document.getElementById(id);
const money = (cents) => new Intl.NumberFormat("en", { style: "currency", currency: "EUR" }).format(cents / 100);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const LOW_STOCK = 50;
const MOST_OF_ONE = 99;
const ORDER_POLL_MS = 700;
const SHELF_POLL_MS = 3000;
const ADDED_MS = 1400;
const ATTEMPT_TRIES = 12;

let products = [];
let cart = [];
/** What there wasn't enough of when it was last asked for. */
let short = new Set();

/** Elements from text in which everything foreign went through `safe`. */
function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

const safe = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const picture = (sku) => `<div class="picture">${pictures[sku] ?? pictures["enamel-mug"]}</div>`;
const productOf = (sku) => products.find((product) => product.sku === sku);

/** JSON from a service that may be away for a moment. */
async function ask(path, options = {}, tries = 5) {
  for (let tried = 1; ; tried += 1) {
    try {
      const response = await fetch(path, { cache: "no-store", ...options });
      if (response.status < 500 || tried >= tries) {
        return { status: response.status, headers: response.headers, body: await response.json().catch(() => ({})) };
      }
    } catch (error) {
      if (tried >= tries) throw error;
    }
    await sleep(250 * tried);
  }
}

// The shop

const hero = `
  <section class="hero">
    <div class="hero-words"><h1>Good things from the edge of the sea</h1><p>Made to be used in weather, kept for years, and sent the moment you ask.</p></div>
    ${coast}
  </section>`;

async function showShop() {
  const main = $("content");
  main.innerHTML = `${hero}
    <div class="section-title"><h2>The shelf</h2><p>Free delivery to every harbour</p></div>
    <ul class="products" id="products" aria-busy="true">${'<li class="product placeholder"></li>'.repeat(8)}</ul>`;
  await Promise.all([loadProducts(), loadCart()]);
  while (products.length === 0) {
    $("products").replaceChildren(element('<li class="notice">The shelf is out of reach for a moment. We keep looking; you need not do anything.</li>'));
    await sleep(SHELF_POLL_MS);
    await loadProducts();
  }
  $("products").removeAttribute("aria-busy");
  showShelf();
  showCart();
}

const showShelf = () => $("products")?.replaceChildren(...products.map(productCard));

function productCard(product) {
  const isGone = product.stock <= 0;
  const tag = isGone ? "Sold out" : product.stock <= LOW_STOCK ? `Only ${product.stock} left` : "";
  const card = element(`
    <li class="product${isGone ? " gone" : ""}">
      ${picture(product.sku)}
      <div class="product-words">
        <h3>${safe(product.name)}</h3>
        <p>${safe(blurbs[product.sku] ?? "")}</p>
        <div class="product-foot">
          <span class="price">${money(product.price_cents)}</span>
          <button class="add" type="button" ${isGone ? "disabled" : ""} aria-label="Add ${safe(product.name)} to the cart">${isGone ? "Sold out" : "Add"}</button>
        </div>
      </div>
    </li>`);
  if (tag) card.querySelector(".picture").append(element(`<span class="tag">${tag}</span>`));
  card.querySelector(".add").addEventListener("click", ({ currentTarget }) => {
    setQuantity(product.sku, quantityOf(product.sku) + 1);
    $("announce").textContent = `In the cart: ${quantityOf(product.sku)} × ${product.name}`;
    showAdded(currentTarget);
  });
  return card;
}

async function showAdded(button) {
  const clicks = Number(button.dataset.clicks ?? 0) + 1;
  Object.assign(button.dataset, { clicks });
  button.textContent = "Added";
  button.classList.add("added");
  await sleep(ADDED_MS);
  if (Number(button.dataset.clicks) !== clicks) return;
  button.textContent = "Add";
  button.classList.remove("added");
}

/** Those known before stay when the shelf is out of reach. */
async function loadProducts() {
  const answer = await ask("/api/products").catch(() => null);
  if (answer?.status === 200) products = answer.body;
}

// The cart

async function loadCart() {
  const answer = await ask("/api/cart").catch(() => null);
  if (answer?.status === 200) cart = answer.body.items ?? [];
}

const quantityOf = (sku) => cart.find((item) => item.sku === sku)?.quantity ?? 0;

function setQuantity(sku, quantity) {
  const others = cart.filter((item) => item.sku !== sku);
  const wanted = Math.min(quantity, MOST_OF_ONE);
  cart = wanted > 0 ? [...others, { sku, quantity: wanted }].sort((a, b) => a.sku.localeCompare(b.sku)) : others;
  short.delete(sku);
  say("");
  showCart(true);
  keepCart();
}

let keeping = Promise.resolve();
/** One after the other, so that the last change is the one that stays. */
function keepCart() {
  const body = JSON.stringify({ items: cart });
  const options = { method: "PUT", headers: { "content-type": "application/json" }, body };
  keeping = keeping.then(() => ask("/api/cart", options)).catch(() => {});
  return keeping;
}

function showCart(isChange = false) {
  const count = cart.reduce((sum, item) => sum + item.quantity, 0);
  const badge = $("count");
  badge.textContent = count;
  badge.hidden = count === 0;
  $("open-cart").setAttribute("aria-label", `Cart, ${count} ${count === 1 ? "thing" : "things"}`);
  if (isChange) {
    badge.classList.remove("bump");
    void badge.offsetWidth;
    badge.classList.add("bump");
  }
  const focused = $("lines").contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  $("lines").replaceChildren(...(cart.length ? cart.map(cartLine) : [emptyCart()]));
  if (focused) (document.querySelector(`[data-focus="${CSS.escape(focused)}"]`) ?? $("close-cart")).focus();
  $("pay").hidden = cart.length === 0 || !cart.every(({ sku }) => productOf(sku));
  $("total").textContent = money(cart.reduce((sum, { sku, quantity }) => sum + quantity * (productOf(sku)?.price_cents ?? 0), 0));
}

function cartLine({ sku, quantity }) {
  const product = productOf(sku) ?? { name: sku };
  const name = safe(product.name);
  const line = element(`
    <div class="line" data-sku="${safe(sku)}">
      ${picture(sku)}
      <div><strong>${name}</strong>
        <div class="stepper">
          <button type="button" data-focus="${safe(sku)}-less" aria-label="One ${name} less">−</button>
          <output aria-label="Quantity">${quantity}</output>
          <button type="button" data-focus="${safe(sku)}-more" aria-label="One ${name} more" ${quantity >= MOST_OF_ONE ? "disabled" : ""}>+</button>
        </div></div>
      <span class="sum">${product.price_cents === undefined ? "" : money(product.price_cents * quantity)}</span>
    </div>`);
  if (short.has(sku) && product.stock < quantity) line.append(shortNote(product));
  const [less, more] = line.querySelectorAll(".stepper button");
  less.addEventListener("click", () => setQuantity(sku, quantity - 1));
  more.addEventListener("click", () => setQuantity(sku, quantity + 1));
  return line;
}

/** How much there is instead, and a button that takes it. */
function shortNote({ sku, stock }) {
  const left = Math.max(stock, 0);
  const note = element(`
    <p class="short">${left ? `Only ${left} left.` : "Sold out."}
      <button class="link" type="button" data-focus="${safe(sku)}-short">${left ? `Take ${left}` : "Leave it out"}</button></p>`);
  note.querySelector("button").addEventListener("click", () => setQuantity(sku, left));
  return note;
}

const boat = '<svg class="small-boat" viewBox="0 0 120 60" aria-hidden="true"><path d="M6 44q9-8 18 0t18 0 18 0 18 0 18 0 18 0M24 56q9-6 18 0t18 0 18 0 18 0M44 32h36l-6 9H50zM62 32V8l16 18H62"/></svg>';

function emptyCart() {
  const empty = element(`<div class="empty">${boat}<p>Nothing on board yet.</p><button class="link" type="button">Look at the shelf</button></div>`);
  empty.querySelector("button").addEventListener("click", () => (orderId ? location.assign("/") : drawer.close()));
  return empty;
}

// Checkout

function say(text, isCalm = false) {
  const message = $("message");
  message.textContent = text;
  message.hidden = text === "";
  message.classList.toggle("calm", isCalm);
  if (text) $("place").scrollIntoView({ block: "nearest" });
}

const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** The key of an attempt stays the same until the attempt has ended, or what is asked is something else. */
function keyFor(body) {
  const kept = JSON.parse(sessionStorage.getItem("attempt") ?? "null");
  if (kept?.body === body) return kept.key;
  const key = newKey();
  sessionStorage.setItem("attempt", JSON.stringify({ key, body }));
  return key;
}

const forgetKey = () => sessionStorage.removeItem("attempt");

async function placeOrder(event) {
  event.preventDefault();
  const card = $("card").value.replace(/\s/g, "");
  $("card").removeAttribute("aria-invalid");
  if (!/^\d{12,19}$/.test(card)) {
    $("card").setAttribute("aria-invalid", "true");
    $("card").focus();
    return say("A card number has 12 to 19 digits.");
  }
  const button = $("place");
  button.disabled = true;
  button.classList.add("busy");
  say("");
  try {
    await attempt(JSON.stringify({ items: cart, card }));
  } finally {
    button.disabled = false;
    button.classList.remove("busy");
  }
}

async function attempt(body) {
  for (let tried = 0; tried < ATTEMPT_TRIES; tried += 1) {
    const answer = await send(body);
    const isOpen = answer === null || answer.body.in_progress || (answer.status >= 500 && answer.headers.has("retry-after"));
    if (!isOpen) return ended(answer);
    say("This takes longer than usual. We are asking again; you will not be charged twice.", true);
    const seconds = Number(answer?.headers.get("retry-after") ?? 1);
    await sleep(1000 * Math.min(Math.max(seconds, 1), 5));
  }
  say("We can’t reach the till at the moment. Your cart is kept: try again in a little while, you will not be charged twice.");
}

async function send(body) {
  const headers = { "content-type": "application/json", "idempotency-key": keyFor(body) };
  return ask("/api/checkout", { method: "POST", headers, body }, 1).catch(() => null);
}

async function ended({ status, body }) {
  if (status === 201) {
    cart = [];
    await keepCart();
    forgetKey();
    location.assign(`/orders/${body.order_id}`);
    return;
  }
  forgetKey();
  if (status === 402) {
    $("card").setAttribute("aria-invalid", "true");
    return say("The card was declined. Nothing was charged.");
  }
  if (status === 409) {
    short = new Set(body.skus);
    await loadProducts();
    showShelf();
    showCart();
    const names = (body.skus ?? []).map((sku) => productOf(sku)?.name ?? sku).join(", ");
    return say(`There isn’t enough left of: ${names}. Nothing was charged.`);
  }
  if (status === 503) return say("That did not work out, and all of it was undone: nothing was charged. Please try once more.");
  say(`The order was not understood: ${body.error ?? status}.`);
}

// An order

const STEPS = [
  ["placed", "Placed", "Paid and written down"],
  ["packed", "Packed", "In paper, with string"],
  ["shipped", "Shipped", "On its way to you"],
];
const LEADS = {
  placed: "Thank you! We are fetching string.",
  packed: "It is on board, in paper and string.",
  shipped: "It has left the harbour. Fair winds!",
};

async function showOrder(orderId) {
  const main = $("content");
  document.title = "Your order · Littoral";
  main.innerHTML = '<div class="order"><h1>Looking for your order…</h1></div>';
  Promise.all([loadProducts(), loadCart()]).then(() => showCart());
  for (let shown = null; ; ) {
    const answer = await ask(`/api/orders/${encodeURIComponent(orderId)}`).catch(() => null);
    if (answer?.status === 404) {
      main.innerHTML = `<div class="order none">${boat}<h1>No such order</h1><p class="lead">Maybe a character of the address got wet.</p><a class="primary" href="/">Back to the shelf</a></div>`;
      return;
    }
    if (answer?.status === 200) {
      if (shown === null) main.replaceChildren(orderPage(answer.body));
      if (shown !== answer.body.status) advance(answer.body.status);
      shown = answer.body.status;
      if (shown === "shipped") return;
    }
    await sleep(ORDER_POLL_MS);
  }
}

function orderPage(order) {
  const steps = STEPS.map(([, name, words]) => `
    <li class="step"><i class="dot"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 13l5 5 9-11"/></svg></i><strong>${name}</strong><span>${words}</span></li>`);
  const lines = order.items.map(({ sku, name, quantity, price_cents }) => `
    <div class="line">${picture(sku)}<div><strong>${safe(name ?? sku)}</strong><span>${safe(quantity)} × ${money(price_cents ?? 0)}</span></div>
      <span class="sum">${money((price_cents ?? 0) * quantity)}</span></div>`);
  return element(`
    <article class="order">
      <h1>Your order is in good hands</h1>
      <p class="lead" id="lead" aria-live="polite"></p>
      <div class="journey">${voyage}</div>
      <ol class="steps" id="steps">${steps.join("")}</ol>
      <section class="receipt" aria-label="What you ordered">
        ${lines.join("")}
        <p class="total"><span>Total</span><strong>${money(order.total_cents)}</strong></p>
        <dl class="facts"><dt>Order</dt><dd>${safe(order.order_id)}</dd><dt>Payment</dt><dd>${safe(order.payment_id)}</dd></dl>
      </section>
      <a class="primary" href="/">Back to the shelf</a>
    </article>`);
}

function advance(status) {
  const reached = STEPS.findIndex(([name]) => name === status);
  [...$("steps").children].forEach((step, index) => {
    step.classList.toggle("done", index <= reached);
    step.classList.toggle("next", index === reached + 1);
    if (index === reached) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
  $("lead").textContent = LEADS[status] ?? "";
  document.querySelector(".journey").dataset.status = status;
}

// Begin

const drawer = $("cart");
$("open-cart").addEventListener("click", () => drawer.showModal());
$("close-cart").addEventListener("click", () => drawer.close());
drawer.addEventListener("click", (event) => {
  if (event.target === drawer) drawer.close();
});
$("use-declined").addEventListener("click", () => {
  $("card").value = "4000 0000 0000 0002";
  $("card").focus();
});
$("card").addEventListener("input", () => {
  $("card").removeAttribute("aria-invalid");
  say("");
});
$("checkout").addEventListener("submit", placeOrder);

const [, orderId] = location.pathname.match(/^\/orders\/([^/]+)\/?$/) ?? [];
if (orderId) showOrder(decodeURIComponent(orderId));
else showShop();
