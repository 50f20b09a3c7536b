// The grammar of chapter 00: the exact probability of a tale, or of its beginning, and so the least surprise there is.
// tales.json holds its rules and slots, as `gptlearn.tales` has them; this reads templates and texts as chapter 00 does.

const PIECE = /(?<text>[^<>{}]+)|<(?<rule>\w+)>|\{(?<role>\w+)(?:=(?<kind>\w+))?(?:\.(?<feature>\w+))?(?<but>(?:-\w+)*)\}/gu;

export class Grammar {
  constructor({ rules, slots }) {
    this.slots = Object.fromEntries(Object.entries(slots).map(([kind, values]) =>
      [kind, Array.isArray(values) ? Object.fromEntries(values.map((value) => [value, {}])) : values]));
    const templates = Object.entries(rules).map(([rule, list]) => [rule, list.map((t) => (Array.isArray(t) ? t : [1, t]))]);
    this.kinds = {};                     // role → kind, from the templates that choose it
    for (const [, list] of templates)
      for (const [, template] of list)
        for (const { groups } of template.matchAll(PIECE)) if (groups.kind) this.kinds[groups.role] = groups.kind;
    this.expansions = Object.fromEntries(templates.map(([rule, list]) => {
      const total = list.reduce((sum, [weight]) => sum + weight, 0);
      const parts = (template) => [...template.matchAll(PIECE)].map((m) => this.part(m.groups));
      return [rule, list.map(([weight, template]) => ({ nats: Math.log(total / weight), parts: parts(template) }))];
    }));
    this.start = { do: "rule", name: Object.keys(rules)[0] };
    this.memory = new Map();
  }

  part({ text, rule, role, kind, feature, but }) {
    if (text) return { do: "text", name: text };
    if (rule) return { do: "rule", name: rule };
    const forms = Object.entries(this.slots[this.kinds[role]]).map(([value, features]) => {  // value → how it is written here
      const form = feature ? features[feature.toLowerCase()] : value;
      return [value, feature && feature[0] !== feature[0].toLowerCase() ? form[0].toUpperCase() + form.slice(1) : form];
    });
    return { do: kind ? "choose" : "recall", name: role, forms, but: but.split("-").slice(1) };
  }

  // Every way in which a part can go on: letters, nats, the parts that follow, and the roles chosen by then.
  ways(part, chosen) {
    const way = (letters, nats = 0, parts = [], now = chosen) => ({ letters, nats, parts, chosen: now });
    if (part.do === "text") return [way(part.name)];
    if (part.do === "rule") return this.expansions[part.name].map(({ nats, parts }) => way("", nats, parts));
    if (part.do === "recall") return part.forms.filter(([value]) => value === chosen[part.name]).map(([, form]) => way(form));
    const taken = part.but.map((role) => chosen[role]), free = part.forms.filter(([value]) => !taken.includes(value));
    return free.map(([value, form]) => way(form, Math.log(free.length), [], { ...chosen, [part.name]: value }));
  }

  // {nats} of a whole tale, or with `prefix` of all tales that begin so; {nats: Infinity, at, allowed} where `text` leaves the
  // grammar: at character `at`, and what could have stood there.
  surprise(text, prefix = false) {
    const key = text + (prefix ? "…" : "");
    if (this.memory.has(key)) return this.memory.get(key);
    let probability = 0, at = 0, allowed = new Set();
    const missed = (place, letters) => {
      if (place > at) { at = place; allowed = new Set(); }
      if (place === at) allowed.add(letters);
    };
    const todo = [{ left: { part: this.start, rest: null }, at: 0, chosen: {}, nats: 0 }];
    while (todo.length) {
      const now = todo.pop();
      if (now.at === text.length && (prefix || !now.left)) { probability += Math.exp(-now.nats); continue; }
      if (!now.left) { missed(now.at, ""); continue; }  // nothing left to write, yet the text goes on
      for (const { letters, nats, parts, chosen } of this.ways(now.left.part, now.chosen)) {
        let same = 0;
        while (same < letters.length && letters[same] === text[now.at + same]) same++;
        if (same < letters.length && !(prefix && now.at + same === text.length)) { missed(now.at + same, letters.slice(same)); continue; }
        const left = parts.reduceRight((rest, part) => ({ part, rest }), now.left.rest);
        todo.push({ left, at: now.at + same, chosen, nats: now.nats + nats });
      }
    }
    const found = probability ? { nats: -Math.log(probability) } : { nats: Infinity, at, allowed: [...allowed].sort() };
    if (this.memory.size > 5000) this.memory.clear();
    this.memory.set(key, found);
    return found;
  }

  // The least surprise of each piece of a text, given those before it: Infinity where it leaves the grammar, then null.
  // pieces: [{text, ends}]; `ends` marks the end of the tale.
  floors(pieces) {
    let begun = "", before = 0;
    return pieces.map(({ text, ends }) => {
      if (!Number.isFinite(before)) return null;
      const { nats } = ends ? this.surprise(begun) : this.surprise(begun + text, true), floor = nats - before;
      [begun, before] = ends ? ["", 0] : [begun + text, nats];
      return floor;
    });
  }

  sample(random = Math.random) {         // a tale, as chapter 00 draws one
    let text = "", chosen = {}, todo = [this.start];
    while (todo.length) {
      const ways = this.ways(todo.pop(), chosen);
      let dart = random(), i = 0;
      while (i < ways.length - 1 && (dart -= Math.exp(-ways[i].nats)) >= 0) i++;
      text += ways[i].letters;
      chosen = ways[i].chosen;
      todo.push(...[...ways[i].parts].reverse());
    }
    return text;
  }
}
