// Keeps a page as it is now. Without this, pages are whole, and as old as they are.
"use strict";

(() => {
  const connection = document.getElementById("connection");
  // Milliseconds until a server that has refused is asked again.
  const AGAIN = 5000;

  function told(is, text) {
    connection.dataset.is = is;
    if (connection.textContent !== text) connection.textContent = text;
  }

  // Listens to `url()` while the page is seen: browsers have few connections for one host, and nobody looks at what is hidden.
  function listen(url, events) {
    let source = null;
    let isOver = false;

    function close() {
      if (source) source.close();
      source = null;
    }

    function open() {
      if (source || isOver || document.hidden) return;
      source = new EventSource(url());
      source.onopen = () => told("live", "live");
      source.onerror = () => {
        told("lost", "not connected");
        // What the server refuses is not asked for again by the browser.
        if (source && source.readyState === EventSource.CLOSED) {
          close();
          setTimeout(open, AGAIN);
        }
      };
      for (const [name, handle] of Object.entries(events)) {
        source.addEventListener(name, (event) => handle(event));
      }
      source.addEventListener("end", () => {
        isOver = true;
        close();
        told("over", "");
      });
    }

    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    addEventListener("pagehide", close);
    addEventListener("pageshow", open);
    open();
  }

  // Makes `old` the same as `fresh`, and leaves alone what is the same already: focus, selection and places of scrolled boxes stay.
  function become(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (old.isEqualNode(fresh)) return;
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    children(old, fresh);
  }

  // Rows have ids: one that has moved is moved.
  function children(old, fresh) {
    let at = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      const known = next.id ? [...old.children].find((child) => child.id === next.id) : null;
      if (known && known !== at) {
        old.insertBefore(known, at);
        become(known, next);
      } else if (at && (known || !(next.id || at.id))) {
        const following = at.nextSibling;
        become(at, next);
        at = following;
      } else {
        old.insertBefore(next, at);
      }
    }
    while (at) {
      const following = at.nextSibling;
      at.remove();
      at = following;
    }
  }

  const changing = document.querySelector("#changing[data-live]");
  if (changing) {
    listen(() => location.pathname + location.search, {
      page: (event) => {
        const fresh = new DOMParser().parseFromString("<div>" + event.data + "</div>", "text/html").body.firstChild;
        children(changing, fresh);
      },
    });
  }

  // A log that is written. What comes is text, and is put in as text.
  const log = document.querySelector("#log");
  const MOST = 2_000_000;
  if (log) {
    log.scrollTop = log.scrollHeight;
  }
  if (log && log.dataset.follow !== undefined) {
    let cursor = log.dataset.follow;
    listen(() => location.pathname + (cursor ? "?cursor=" + encodeURIComponent(cursor) : ""), {
      log: (event) => {
        const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        document.getElementById("nothing")?.remove();
        log.append(event.data);
        let length = log.textContent.length;
        while (length > MOST && log.childNodes.length > 1) {
          length -= log.firstChild.length;
          log.firstChild.remove();
        }
        cursor = event.lastEventId;
        if (isAtEnd) log.scrollTop = log.scrollHeight;
      },
    });
  }

  // How long ago something was, while the page stands.
  function span(seconds) {
    if (seconds < 60) return Math.floor(seconds) + "s";
    const two = (number) => String(Math.floor(number)).padStart(2, "0");
    if (seconds < 3600) return Math.floor(seconds / 60) + "m" + two(seconds % 60) + "s";
    if (seconds < 86400) return Math.floor(seconds / 3600) + "h" + two((seconds / 60) % 60) + "m";
    return Math.floor(seconds / 86400) + "d" + two((seconds / 3600) % 24) + "h";
  }

  function age() {
    for (const time of document.querySelectorAll("time.ago")) {
      const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
      const text = span(Math.max(0, seconds)) + " ago";
      if (time.textContent !== text) time.textContent = text;
    }
  }
  setInterval(() => document.hidden || age(), 5000);
})();
