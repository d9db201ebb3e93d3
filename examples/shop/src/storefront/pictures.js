// A picture for each product, drawn by hand: flat shapes on a tinted ground, 240 by 200.

const ground = (tone, shapes) =>
  `<svg viewBox="0 0 240 200" preserveAspectRatio="xMidYMid slice" aria-hidden="true" focusable="false">` +
  `<rect width="240" height="200" fill="${tone}"/>${shapes}</svg>`;

const shadow = (x, y, width) => `<ellipse cx="${x}" cy="${y}" rx="${width}" ry="6" fill="#17313b" opacity=".14"/>`;

const SAND = "#efe2c6";
const SKY = "#cfe2e1";
const CORAL = "#f3cfc0";
const STRAW = "#f2dfa6";
const SAGE = "#d5dec6";
const SEA = "#a9ced1";
const DUSK = "#2c4a5a";

export const pictures = {
  "enamel-mug": ground(SKY, `
    ${shadow(118, 163, 62)}
    <g fill="none" stroke="#fff" stroke-width="4" stroke-linecap="round" opacity=".75">
      <path d="M98 58q-9-10 0-20t0-18"/><path d="M120 60q-9-10 0-20t0-20"/><path d="M142 58q-9-10 0-20t0-18"/>
    </g>
    <path d="M156 92h16a17 17 0 0 1 17 17v8a25 25 0 0 1-25 25h-10" fill="none" stroke="#1d4e6b" stroke-width="11"/>
    <path d="M76 74h88v74a14 14 0 0 1-14 14H90a14 14 0 0 1-14-14z" fill="#fbf8f0"/>
    <path d="M148 74h16v74a14 14 0 0 1-14 14h-12q10-4 10-16z" fill="#e6e3d8"/>
    <rect x="72" y="68" width="96" height="10" rx="5" fill="#1d4e6b"/>
    <path d="M76 122q11-9 22 0t22 0 22 0 22 0v10q-11 9-22 0t-22 0-22 0-22 0z" fill="#1d4e6b"/>
    <g fill="#1d4e6b" opacity=".55"><circle cx="90" cy="92" r="1.6"/><circle cx="111" cy="100" r="1.3"/><circle cx="133" cy="90" r="1.6"/>
      <circle cx="150" cy="104" r="1.2"/><circle cx="98" cy="146" r="1.4"/><circle cx="129" cy="150" r="1.5"/></g>`),

  "storm-lantern": ground(DUSK, `
    <circle cx="120" cy="108" r="84" fill="#f4c46a" opacity=".13"/><circle cx="120" cy="108" r="58" fill="#f4c46a" opacity=".2"/>
    <ellipse cx="120" cy="178" rx="54" ry="6" fill="#0d1d25" opacity=".5"/>
    <path d="M84 72C84 6 156 6 156 72" fill="none" stroke="#d8dcd6" stroke-width="3.5"/>
    <path d="M82 150V72h7v78zM151 150V72h7v78z" fill="#8e2f23"/>
    <path d="M102 50h36l6 14H96z" fill="#c4432f"/><rect x="110" y="38" width="20" height="13" rx="3" fill="#8e2f23"/>
    <path d="M100 64h40q16 26 14 48-1 18-12 34h-44q-11-16-12-34-2-22 14-48z" fill="#fff6df" opacity=".9"/>
    <path d="M120 84q17 20 14 36a14 14 0 0 1-28 0q-1-8 6-16 0 6 4 8 5-12 4-28z" fill="#f09a37"/>
    <path d="M120 108q8 9 6 17a6.5 6.5 0 0 1-13 0q0-6 7-17z" fill="#fde08a"/>
    <path d="M94 146h52l4 10H90z" fill="#8e2f23"/><path d="M84 156h72l6 22H78z" fill="#c4432f"/>
    <path d="M138 156h18l6 22h-20z" fill="#a5382a"/><circle cx="162" cy="164" r="5" fill="#e9b44c"/>`),

  "wool-blanket": ground(CORAL, `
    ${shadow(120, 166, 80)}
    <rect x="46" y="126" width="148" height="38" rx="17" fill="#e9e0cd"/><path d="M46 140h148v10H46z" fill="#b5523d"/>
    <rect x="50" y="90" width="140" height="40" rx="18" fill="#2f6f76"/><path d="M52 104h136v5H52zM52 114h136v3H52z" fill="#f1e7d2"/>
    <rect x="56" y="54" width="128" height="40" rx="18" fill="#f6efe0"/>
    <path d="M84 54h14v40H84zM142 54h14v40h-14z" fill="#b5523d"/><path d="M104 54h5v40h-5zM131 54h5v40h-5z" fill="#2f6f76"/>
    <path d="M56 74h128v6H56z" fill="#17313b" opacity=".07"/>
    <g fill="none" stroke="#d8c9ab" stroke-width="3" stroke-linecap="round">
      <path d="M62 164v10M74 164v12M86 164v10M98 164v12M110 164v10M122 164v12M134 164v10M146 164v12M158 164v10M170 164v12M180 162v10"/></g>`),

  "oilskin-coat": ground(SEA, `
    ${shadow(120, 184, 52)}
    <path d="M120 16v10" fill="none" stroke="#5b4630" stroke-width="4" stroke-linecap="round"/>
    <path d="M94 44q4-22 26-22t26 22l-8 12h-36z" fill="#d79a1e"/><path d="M104 48q2-16 16-16t16 16l-6 8h-20z" fill="#8a5d10"/>
    <path d="M94 44l-26 16-22 76 22 8 14-42-4 80h84l-4-80 14 42 22-8-22-76-26-16-14 14h-24z" fill="#f2bb32"/>
    <path d="M126 58h20l-14 14zM114 58H94l14 14z" fill="#d79a1e"/>
    <path d="M120 64v118" fill="none" stroke="#c98d17" stroke-width="3"/>
    <g fill="#5b4630"><circle cx="128" cy="86" r="3.5"/><circle cx="128" cy="110" r="3.5"/><circle cx="128" cy="134" r="3.5"/><circle cx="128" cy="158" r="3.5"/></g>
    <path d="M86 130h22v8H86zM136 130h22v8h-22z" fill="#d79a1e"/><path d="M88 138h18v20H88zM138 138h18v20h-18z" fill="#e6ac27"/>`),

  "fisher-beanie": ground(STRAW, `
    ${shadow(120, 164, 66)}
    <path d="M62 126C58 62 88 40 120 40s62 22 58 86z" fill="#b5472f"/>
    <g fill="none" stroke="#93361f" stroke-width="3.5">
      <path d="M120 42v84M98 46q-16 30-14 80M142 46q16 30 14 80M80 60q-10 28-8 66M160 60q10 28 8 66"/></g>
    <rect x="52" y="116" width="136" height="46" rx="16" fill="#c95a40"/>
    <g fill="none" stroke="#a8432b" stroke-width="4" stroke-linecap="round">
      <path d="M68 124v30M81 124v30M94 124v30M107 124v30M120 124v30M133 124v30M146 124v30M159 124v30M172 124v30"/></g>
    <rect x="140" y="128" width="26" height="18" rx="3" fill="#f6efe0"/><path d="M146 139q3.5-5 7 0t7 0" fill="none" stroke="#1d4e6b" stroke-width="2.5"/>`),

  "brass-compass": ground(SAGE, `
    ${shadow(120, 176, 58)}
    <circle cx="120" cy="26" r="11" fill="none" stroke="#a97a22" stroke-width="6"/><rect x="112" y="34" width="16" height="12" rx="3" fill="#a97a22"/>
    <circle cx="120" cy="108" r="66" fill="#c99632"/><circle cx="120" cy="108" r="58" fill="#a97a22"/><circle cx="120" cy="108" r="53" fill="#fbf6e6"/>
    <g fill="none" stroke="#17313b" stroke-width="3" stroke-linecap="round"><path d="M120 61v9M120 146v9M73 108h9M158 108h9"/></g>
    <g fill="none" stroke="#17313b" stroke-width="1.5" opacity=".6"><path d="M87 75l5 5M153 75l-5 5M87 141l5-5M153 141l-5-5"/></g>
    <path d="M120 74l8 34-8 34-8-34z" fill="#e8dcc0"/><path d="M86 108l34-8 34 8-34 8z" fill="#e8dcc0"/>
    <g transform="rotate(28 120 108)"><path d="M120 66l10 42h-20z" fill="#c4432f"/><path d="M120 150l10-42h-20z" fill="#1d4e6b"/></g>
    <circle cx="120" cy="108" r="6" fill="#c99632"/><path d="M78 76a54 54 0 0 1 50-22" fill="none" stroke="#fff" stroke-width="5" stroke-linecap="round" opacity=".7"/>`),

  "tide-clock": ground(SAND, `
    ${shadow(120, 182, 58)}
    <circle cx="120" cy="100" r="74" fill="#8a5a34"/><circle cx="120" cy="100" r="66" fill="#6f4626"/><circle cx="120" cy="100" r="61" fill="#fdfaf0"/>
    <path d="M60.5 108q10-10 20 0t20 0 20 0 20 0 20 0 19 0A61 61 0 0 1 60.5 108z" fill="#4a98a0"/>
    <path d="M66 128q9-8 18 0t18 0 18 0 18 0 18 0 18 0A61 61 0 0 1 66 128z" fill="#2f7f86"/>
    <g fill="#17313b"><circle cx="120" cy="48" r="3.5"/><circle cx="150" cy="56" r="2.2"/><circle cx="90" cy="56" r="2.2"/><circle cx="68" cy="86" r="2.2"/><circle cx="172" cy="86" r="2.2"/></g>
    <g fill="#fdfaf0"><circle cx="120" cy="152" r="3.5"/><circle cx="150" cy="144" r="2.2"/><circle cx="90" cy="144" r="2.2"/></g>
    <path d="M120 100l31-36" fill="none" stroke="#c4432f" stroke-width="6" stroke-linecap="round"/><circle cx="120" cy="100" r="7" fill="#17313b"/>
    <path d="M72 66a59 59 0 0 1 38-24" fill="none" stroke="#fff" stroke-width="6" stroke-linecap="round" opacity=".8"/>`),

  "sea-salt": ground(SKY, `
    ${shadow(120, 174, 50)}
    <rect x="98" y="26" width="44" height="26" rx="6" fill="#b98a55"/><path d="M98 38h44v4H98z" fill="#a07444"/>
    <path d="M94 48h52v12q20 10 20 30v66a16 16 0 0 1-16 16H90a16 16 0 0 1-16-16V90q0-20 20-30z" fill="#f4fbfb" opacity=".85"/>
    <path d="M80 96q10-9 20-2t22-3 38 5v58a12 12 0 0 1-12 12H92a12 12 0 0 1-12-12z" fill="#fff"/>
    <g fill="#dfe8e8"><path d="M92 102l6 3-4 5zM140 100l7 1-4 6zM112 98l6 4-6 3zM150 154l5 2-5 4zM88 152l6 1-3 5z"/></g>
    <rect x="88" y="110" width="64" height="40" rx="4" fill="#1d4e6b"/>
    <path d="M98 134q5.5-8 11 0t11 0 11 0 11 0" fill="none" stroke="#f3cfc0" stroke-width="4" stroke-linecap="round"/><path d="M104 121h32" fill="none" stroke="#fff" stroke-width="4" stroke-linecap="round"/>
    <path d="M84 84q2-10 12-15" fill="none" stroke="#fff" stroke-width="5" stroke-linecap="round"/>`),

  "field-notebook": ground(CORAL, `
    ${shadow(122, 178, 62)}
    <g transform="rotate(-9 120 104)">
      <rect x="76" y="34" width="92" height="136" rx="8" fill="#f8f2e2"/><rect x="70" y="30" width="92" height="138" rx="8" fill="#2f6f76"/>
      <path d="M70 38a8 8 0 0 1 8-8h8v138h-8a8 8 0 0 1-8-8z" fill="#24565c"/><rect x="144" y="30" width="8" height="138" fill="#17313b" opacity=".55"/>
      <rect x="98" y="56" width="38" height="26" rx="3" fill="#f8f2e2"/><path d="M104 65h26M104 73h16" fill="none" stroke="#2f6f76" stroke-width="3" stroke-linecap="round"/>
      <path d="M108 168v18l6-5 6 5v-18z" fill="#c4432f"/></g>
    <g transform="rotate(24 186 110)"><rect x="181" y="48" width="12" height="98" fill="#f2bb32"/><path d="M181 146h12l-6 20z" fill="#f1d9b0"/><path d="M184.5 157h5l-2.5 9z" fill="#17313b"/>
      <rect x="181" y="38" width="12" height="12" rx="3" fill="#c4432f"/><rect x="181" y="48" width="12" height="5" fill="#b9bdb8"/></g>`),

  "rope-doormat": ground(SAGE, `
    ${shadow(120, 158, 92)}
    <ellipse cx="120" cy="106" rx="96" ry="56" fill="#b08a52"/>
    <g fill="none" stroke="#d9b981" stroke-width="10">
      <ellipse cx="120" cy="104" rx="90" ry="50"/><ellipse cx="120" cy="104" rx="76" ry="39"/><ellipse cx="120" cy="104" rx="62" ry="28"/><ellipse cx="120" cy="104" rx="48" ry="17"/></g>
    <path d="M84 104h72" fill="none" stroke="#d9b981" stroke-width="11" stroke-linecap="round"/>
    <g fill="none" stroke="#9a7440" stroke-width="10" stroke-dasharray="2 9" opacity=".8">
      <ellipse cx="120" cy="104" rx="90" ry="50"/><ellipse cx="120" cy="104" rx="76" ry="39"/><ellipse cx="120" cy="104" rx="62" ry="28"/><ellipse cx="120" cy="104" rx="48" ry="17"/><path d="M86 104h70"/></g>
    <g fill="none" stroke="#1d4e6b" stroke-width="10" opacity=".85"><ellipse cx="120" cy="104" rx="76" ry="39" stroke-dasharray="60 300" stroke-dashoffset="-8"/><ellipse cx="120" cy="104" rx="76" ry="39" stroke-dasharray="60 300" stroke-dashoffset="-192"/></g>`),

  "wind-kite": ground(SKY, `
    <g fill="#fff" opacity=".8"><path d="M24 148a14 14 0 0 1 14-14 18 18 0 0 1 34-4 13 13 0 0 1 14 18z"/><path d="M170 52a10 10 0 0 1 10-10 13 13 0 0 1 25-2 10 10 0 0 1 9 12z"/></g>
    <path d="M126 120C104 150 160 158 130 190" fill="none" stroke="#17313b" stroke-width="2.5"/>
    <g transform="rotate(14 126 74)"><path d="M126 18v104L82 62z" fill="#c4432f"/><path d="M126 18v104l44-60z" fill="#f2bb32"/><path d="M126 18L82 62h44z" fill="#dd6a50"/><path d="M126 62h44l-44 60z" fill="#2f7f86"/>
      <path d="M126 18v104M82 62h88" fill="none" stroke="#17313b" stroke-width="2.5"/></g>
    <g><path d="M118 146l-14-5v12l14-5 14 6v-13z" fill="#2f7f86"/><path d="M139 167l-14-5v12l14-5 14 6v-13z" fill="#c4432f"/></g>`),

  "signal-flags": ground(SEA, `
    <path d="M6 40Q120 84 234 34" fill="none" stroke="#5b4630" stroke-width="4"/>
    <g transform="rotate(9 44 54)"><rect x="22" y="54" width="46" height="60" fill="#fdfaf0"/><path d="M22 54h23v60H22z" fill="#1d4e6b"/></g>
    <g transform="rotate(3 98 66)"><rect x="76" y="62" width="46" height="60" fill="#f2bb32"/><path d="M76 62h46L76 122z" fill="#c4432f"/></g>
    <g transform="rotate(-4 152 64)"><rect x="130" y="62" width="46" height="60" fill="#c4432f"/><path d="M130 84h46v16h-46z" fill="#fdfaf0"/><path d="M145 62h16v60h-16z" fill="#fdfaf0"/></g>
    <g transform="rotate(-11 204 50)"><rect x="184" y="48" width="46" height="60" fill="#fdfaf0"/><rect x="195" y="61" width="24" height="34" fill="#1d4e6b"/></g>
    <path d="M0 168q15-12 30 0t30 0 30 0 30 0 30 0 30 0 30 0 30 0v32H0z" fill="#2f7f86"/><path d="M0 182q15-10 30 0t30 0 30 0 30 0 30 0 30 0 30 0 30 0v18H0z" fill="#24656b"/>`),

  "lighthouse-lamp": ground(DUSK, `
    <path d="M120 52L-10 10v62zM120 52l130-42v62z" fill="#f8d98a" opacity=".28"/><circle cx="120" cy="52" r="44" fill="#f8d98a" opacity=".25"/>
    <ellipse cx="120" cy="180" rx="60" ry="6" fill="#0d1d25" opacity=".5"/>
    <path d="M104 70h32l12 104H92z" fill="#fbf6e6"/>
    <path d="M102.4 84h35.200l2.4 20h-40zM98 124h44l2.3 20H95.700z" fill="#c4432f"/>
    <path d="M128 70h8l12 104h-14z" fill="#17313b" opacity=".1"/>
    <rect x="96" y="64" width="48" height="8" rx="3" fill="#17313b"/><rect x="106" y="38" width="28" height="27" fill="#fde9a8"/><path d="M106 38h4v27h-4zM130 38h4v27h-4zM118.5 38h3v27h-3z" fill="#17313b"/>
    <path d="M101 39q19-28 38 0z" fill="#c4432f"/><circle cx="120" cy="23" r="3.5" fill="#e9b44c"/>
    <path d="M113 174v-14a7 7 0 0 1 14 0v14z" fill="#5b4630"/><rect x="78" y="172" width="84" height="9" rx="4" fill="#8a5a34"/>`),

  "bottle-ship": ground(SAND, `
    ${shadow(118, 172, 84)}
    <path d="M66 150h18l-6 22H60zM140 150h18l6 22h-18z" fill="#8a5a34"/>
    <rect x="204" y="90" width="22" height="26" rx="4" fill="#b98a55"/>
    <path d="M52 58h92q30 0 40 28h22v34h-22q-10 34-40 34H52a30 30 0 0 1-30-30V88a30 30 0 0 1 30-30z" fill="#e9f5f4"/>
    <path d="M24 118q10-8 20 0t20 0 20 0 20 0 20 0 20 0 20 0 14 0q-10 32-38 32H52a28 28 0 0 1-28-28z" fill="#4a98a0"/>
    <path d="M62 108h78l-12 20H76z" fill="#8a3a2a"/><path d="M62 108h78l-2.5 5h-72z" fill="#f2dfa6"/>
    <path d="M84 108V66M112 108V64" fill="none" stroke="#5b4630" stroke-width="3"/>
    <path d="M87 70q20 6 0 32zM115 68q24 8 0 36z" fill="#fff"/><path d="M81 74q-14 10-16 30h16z" fill="#f6efe0"/><path d="M112 64l12 4-12 4z" fill="#c4432f"/>
    <path d="M52 58h92q30 0 40 28h22v34h-22q-10 34-40 34H52a30 30 0 0 1-30-30V88a30 30 0 0 1 30-30z" fill="none" stroke="#9cc5c4" stroke-width="4"/>
    <path d="M36 86q3-15 18-17h16" fill="none" stroke="#fff" stroke-width="6" stroke-linecap="round"/>`),
};

export const blurbs = {
  "enamel-mug": "Holds coffee, tea and the heat of your hands.",
  "storm-lantern": "Burns on where candles give up.",
  "wool-blanket": "Woven on the island, washed in soft rain.",
  "oilskin-coat": "For the weather that keeps the others in.",
  "fisher-beanie": "Two layers of wool, ears included.",
  "brass-compass": "Knows north. Everything else is up to you.",
  "tide-clock": "One hand: high water or low.",
  "sea-salt": "Dried by wind and sun, nothing else.",
  "field-notebook": "Writes in drizzle. 128 pages.",
  "rope-doormat": "Retired mooring line, hand-knotted.",
  "wind-kite": "Flies from a breath of wind upward.",
  "signal-flags": "A full set: say it across the bay.",
  "lighthouse-lamp": "Turns once every ten seconds, like the real one.",
  "bottle-ship": "A three-evening job, done for you.",
};
