// The two large pictures: the coast above the shelf, and the way of an order. What looks otherwise by night has a class and its colour from
// shop.css.

/** The surface of water, `rise` high, in arcs of `half` a wave, with water below it down to `bottom`. */
function wave(name, y, half, rise, bottom) {
  const arcs = Math.ceil(1500 / half);
  return `<path class="${name}" d="M-120 ${y}q${half / 2}-${rise} ${half} 0${`t${half} 0`.repeat(arcs)}V${bottom}H-120z"/>`;
}

/** The light of a lamp, that ends so softly that nobody sees where. */
function light(x, y, reach) {
  const stops = [[0, 0.95], [0.3, 0.48], [0.6, 0.18], [0.85, 0.04], [1, 0]];
  const drawn = stops.map(([offset, opacity]) => `<stop class="light" offset="${offset}" stop-opacity="${opacity}"/>`);
  return `<defs><radialGradient id="beam" gradientUnits="userSpaceOnUse" cx="${x}" cy="${y}" r="${reach}">${drawn.join("")}</radialGradient></defs>`;
}

const scene = (width, height, alignment, shapes) =>
  `<svg class="scene" viewBox="0 0 ${width} ${height}" preserveAspectRatio="${alignment} slice" aria-hidden="true" focusable="false">` +
  `<rect class="sky" width="${width}" height="${height}"/>${shapes}</svg>`;

export const coast = scene(1200, 400, "xMaxYMax", `
  ${light(1015, 108, 460)}
  <path class="stars" d="M40 58h0M150 24h0M262 40h0M352 18h0M462 38h0M554 20h0M640 110h0M668 40h0M716 96h0M804 30h0M872 58h0M946 26h0M1082 44h0M1130 96h0M1168 28h0M1176 168h0M930 150h0"/>
  <circle class="halo" cx="820" cy="190" r="78"/><circle class="sun" cx="820" cy="190" r="58"/>
  <g class="cloud"><path d="M712 92a18 18 0 0 1 18-18 25 25 0 0 1 47-5 18 18 0 0 1 20 23z"/><path d="M1076 62a16 16 0 0 1 16-16 22 22 0 0 1 42-3 16 16 0 0 1 16 19z"/></g>
  <path class="birds" d="M918 148q9-10 16 0 8-10 17 0M886 108q7-8 13 0 6-8 13 0M942 84q7-8 13 0 6-8 13 0"/>
  <path class="beam" d="M1015 108L555 30v140zM1015 108l460-78v140z" fill="url(#beam)"/>
  <path class="hill-far" d="M880 330q50-60 96-62 60-30 118 6 70 4 140 62v64H860z"/><path class="hill" d="M930 330q46-40 90-40 80 0 180 50v60H900z"/>
  <path d="M994 132h42l18 150h-78z" fill="#fdf8ea"/><path d="M990.5 162h49l4.8 40h-58.6zM983.3 222h63.4l4.8 40h-73z" fill="#c4432f"/><path d="M1020 132h16l18 150h-26z" fill="#17313b" opacity=".1"/>
  <rect x="986" y="124" width="58" height="10" rx="3" fill="#17313b"/><rect x="1000" y="92" width="30" height="33" fill="#fde9a8"/><path d="M1000 92h5v33h-5zM1025 92h5v33h-5zM1013 92h4v33h-4z" fill="#17313b"/><path d="M994 93q21-32 42 0z" fill="#c4432f"/>
  <path d="M1072 282v-26l22-16 22 16v26z" fill="#fdf8ea"/><path d="M1066 258l28-22 28 22-4 6-24-18-24 18z" fill="#7b3a2c"/><rect class="door" x="1088" y="262" width="12" height="20"/>
  ${wave("wave water-1", 318, 50, 16, 400)}
  <g transform="translate(44 0)"><g class="boat"><path d="M640 318h112l-18 30h-76z" fill="#8a3a2a"/><path d="M640 318h112l-4 7H644z" fill="#f2dfa6"/><path d="M694 318V214" fill="none" stroke="#5b4630" stroke-width="5"/>
    <path d="M699 220q56 40 40 90h-40z" fill="#fffaf0"/><path d="M689 230q-42 34-42 80h42z" fill="#f3e6cd"/><path d="M694 214l22 8-22 8z" fill="#c4432f"/></g></g>
  ${wave("wave wave-2 water-2", 346, 60, 16, 400)}
  ${wave("wave water-3", 374, 60, 12, 400)}`);

export const voyage = scene(960, 230, "xMidYMax", `
  ${light(896, 58, 420)}
  <path class="stars" d="M128 30h0M196 84h0M262 26h0M352 62h0M418 22h0M566 34h0M640 90h0M700 24h0M776 58h0M836 20h0M940 34h0M150 120h0"/>
  <circle class="halo" cx="480" cy="116" r="64"/><circle class="sun" cx="480" cy="116" r="48"/>
  <g class="cloud"><path d="M250 70a18 18 0 0 1 18-18 25 25 0 0 1 47-4 18 18 0 0 1 20 22z"/><path d="M610 56a15 15 0 0 1 15-15 20 20 0 0 1 38-3 15 15 0 0 1 16 18z"/></g>
  <path class="beam" d="M896 58L476-4v124zM896 58l420-62v124z" fill="url(#beam)"/>
  <path d="M0 150h70q20 0 24 30v50H0z" fill="#8a6a4a"/><path d="M0 150h72q10 0 14 8H0z" fill="#a98660"/>
  <path d="M10 150V98l34-24 34 24v52z" fill="#c4432f"/><path d="M2 102l42-31 42 31-5 7-37-27L7 109z" fill="#5b2f26"/><rect x="32" y="112" width="24" height="38" fill="#fdf8ea"/>
  <path class="hill" d="M838 200q34-44 62-46 34-8 60 6v70H830z"/><path d="M884 72h24l10 86h-44z" fill="#fdf8ea"/><path d="M881.7 92h28.6l2.6 24h-33.8zM878 128h36l2.6 22h-41z" fill="#c4432f"/>
  <rect x="880" y="66" width="32" height="7" rx="2" fill="#17313b"/><rect x="887" y="48" width="18" height="19" fill="#fde9a8"/><path d="M883 49q13-19 26 0z" fill="#c4432f"/>
  <g class="vessel"><g class="rocking"><path d="M0 168h96l-15 28H15z" fill="#8a3a2a"/><path d="M0 168h96l-4 7H4z" fill="#f2dfa6"/>
    <g class="parcel"><rect x="14" y="146" width="24" height="22" fill="#b98a55"/><path d="M24.5 146h3v22h-3zM14 156h24v2.500H14z" fill="#f6efe0"/></g>
    <path d="M54 168V76" fill="none" stroke="#5b4630" stroke-width="4"/><path d="M58 82q44 34 32 78H58z" fill="#fffaf0"/><path d="M54 76l18 6-18 7z" fill="#c4432f"/></g></g>
  ${wave("wave water-2", 190, 40, 12, 230)}
  ${wave("wave wave-2 water-3", 212, 40, 9, 230)}`);
