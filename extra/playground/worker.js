/* worker.js - trains one model, in slices, so that a message is answered within one of them.

   It is sent   { start, settings, sizes, text }    a module's bytes, and what make() in
                { start, files, text }              playground.c asks for, or a checkpoint's files
                { run: true or false }, { step: 1 }, { line: bytes }, { save: 1 }
   and answers  { shape } when it has started, { report, rate, evaluated }, { sample }, { line },
                { files }, { done: 1 } after the last step, { failed: "why" } */
"use strict";
const BATCH = 12;                          // sequences in a step, as in playground.c
const EVERY = 50, SAMPLE = 240;            // steps between evaluations; bytes of a sample
let lib, memory, shape, running = false, stepping = false, failed = false;
let room, line;                            // for a sample, and for the visitor's line
let steps = 0, seconds = 0;                // of the whole run; seconds in training alone
let tokens = 0, spent = 0, reported = 0;   // since the last report, and when that was

const bytes = (at, n) => new Uint8Array(memory.buffer, at, n);
const numbers = (at, n) => new Float64Array(memory.buffer, at, n);
const latin = (at, n) => String.fromCharCode(...bytes(at, n));

// --- what wasi-libc asks of a system: files in memory --------------------------------------------
const files = new Map(), opened = [];      // by path: { data, size }; by fd - 4: { file, at }
const NO_FILE = 44, BAD_FD = 8;
const get = at => new DataView(memory.buffer).getUint32(at, true);
const put = (at, x) => new DataView(memory.buffer).setUint32(at, x, true);

function read(open, to) {
  const part = open.file.data.subarray(open.at, Math.min(open.file.size, open.at + to.length));
  to.set(part);
  open.at += part.length;
  return part.length;
}

function write(open, from) {
  const { file, at } = open, end = at + from.length, old = file.data;
  if (end > old.length) (file.data = new Uint8Array(2 * end)).set(old.subarray(0, file.size));
  file.data.set(from, at);
  file.size = Math.max(file.size, open.at = end);
  return from.length;
}

/* Reads into a list of buffers, or writes from it. */
const each = act => (fd, list, n, sum) => {
  let all = 0;
  for (const open = opened[fd - 4] || { file: { data: [], size: 0 }, at: 0 }; n > 0; n--, list += 8)
    all += act(open, bytes(get(list), get(list + 4)));
  put(sum, all);
  return 0;
};

const wasi = {
  fd_prestat_get: (fd, to) => fd === 3 ? (put(to, 0), put(to + 4, 1), 0) : BAD_FD,    // 3 is "/"
  fd_prestat_dir_name: (fd, to) => (bytes(to, 1)[0] = 47, 0),
  fd_fdstat_get: (fd, to) => (bytes(to, 24).fill(255), put(to, fd === 3 ? 3 : 4), 0),
  path_open(dir, follow, path, n, how, rights, inherited, flags, fd) {
    const name = latin(path, n);
    if (how & 8) files.set(name, { data: new Uint8Array(4096), size: 0 });
    if (!files.has(name)) return NO_FILE;
    return put(fd, opened.push({ file: files.get(name), at: 0 }) + 3), 0;
  },
  fd_seek(fd, by, from, to) {
    const open = opened[fd - 4];
    if (!open) return BAD_FD;
    open.at = Number(by) + (from === 0 ? 0 : from === 1 ? open.at : open.file.size);
    return put(to, open.at), put(to + 4, 0), 0;
  },
  fd_read: each(read), fd_write: each(write), fd_close: () => 0, fd_fdstat_set_flags: () => 0,
  path_rename: (dir, from, n, into, to, k) => (files.set(latin(to, k), files.get(latin(from, n))),
    wasi.path_unlink_file(dir, from, n)),
  path_unlink_file: (dir, path, n) => files.delete(latin(path, n)) ? 0 : NO_FILE,
  path_remove_directory: () => NO_FILE,
  proc_exit() { throw new Error("a check inside hmoe.h failed"); },
};

// --- the work ------------------------------------------------------------------------------------
function good(status) {                    // or a pointer
  if (status >= 0) return status;
  throw new Error(latin(lib.message(), bytes(lib.message(), 512).indexOf(0)) || "out of memory");
}

function place(data) {
  const at = lib.room(data.length) || good(-1);
  bytes(at, data.length).set(data);
  return at;
}

function start(message) {
  const module = new WebAssembly.Module(message.start), n = message.text.length;
  lib = new WebAssembly.Instance(module, { wasi_snapshot_preview1: wasi }).exports;
  memory = lib.memory, lib._initialize();
  for (const [name, data] of Object.entries(message.files || {}))
    files.set("model/" + name, { data, size: data.length });
  const settings = place(new Uint8Array(Float64Array.from(message.settings).buffer));
  const sizes = place(new TextEncoder().encode(message.sizes + "\0")), data = place(message.text);
  const at = message.files ? lib.look_at(data, n) : lib.make(settings, sizes, data, n);
  const [C, L, T, E, micro, ...H] = new Int32Array(memory.buffer, good(at || -1), 5 + 256);
  shape = { C, L, T, E, micro, H: H.slice(0, E) };
  if (!message.files) steps = message.settings[13];
  room = lib.room(SAMPLE), line = lib.room(T);
  postMessage({ shape });
}

function report(evaluated) {
  const found = numbers(good(lib.report()), 7 + 2 * shape.L * shape.E).slice();
  postMessage({ report: found, rate: tokens / (spent || 1), evaluated });
  tokens = spent = 0, reported = performance.now();
}

/* All that takes long, in slices: yields wherever a message may come in. */
function* life() {
  for (let step = 0, made;;) {
    while (!good(lib.evaluate())) yield;
    report(true);
    for (let i = 0; i < SAMPLE; yield i += 24) good(lib.speak(room + i, 24, i === 0));
    postMessage({ sample: bytes(room, SAMPLE).slice() });
    if (step === steps) postMessage({ done: 1 });
    do {
      while (step === steps || !running && !stepping) yield "wait";
      const began = performance.now();
      made = good(lib.train());
      const took = (performance.now() - began) / 1000;
      spent += took, seconds += took;
      yield;
      if (!made) continue;
      step++, tokens += BATCH * shape.T;
      if (stepping || performance.now() > reported + 100) report();
      stepping = false;
    } while (!made || step % EVERY && step < steps);
  }
}

function route(words) {
  const n = Math.min(words.length, shape.T);
  bytes(line, n).set(words.subarray(0, n));
  const found = good(lib.route(line, n) || -1), known = numbers(found, 1)[0];
  postMessage({ line: numbers(found, 1 + known * (2 + 2 * shape.L * shape.E)).slice() });
}

function save() {
  good(lib.save(seconds));
  postMessage({ files: Object.fromEntries([...files].map(([path, { data, size }]) =>
    [path.slice(6), data.slice(0, size)])) });
  files.clear();
}

/* Whatever goes wrong is the end of this worker, and said. */
const guarded = act => event => {
  if (!failed) try { act(event); } catch (error) {
    failed = true;
    postMessage({ failed: error.message });
  }
};
const slices = life(), bell = new MessageChannel();
let waiting = false;
const work = () => {
  waiting = slices.next().value === "wait";
  if (!waiting) bell.port2.postMessage(0);
};
bell.port1.onmessage = guarded(work);
onmessage = guarded(({ data }) => {
  if (data.start) start(data), waiting = true;
  if ("run" in data) running = data.run;
  if (data.step) stepping = true;
  if (data.line) route(data.line);
  if (data.save) save();
  if (waiting) work();
});
