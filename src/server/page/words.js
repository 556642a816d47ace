// The page's words in German and Chinese; English is written where it is used and is the key here. {0}, {1} ... stand for values.
export const kLanguages = { en: "English", de: "Deutsch", zh: "中文" };

const kWords = {
  "Skip to the message field": ["Zum Nachrichtenfeld", "跳到消息输入框"],
  "Conversations": ["Unterhaltungen", "对话"],
  "New conversation": ["Neue Unterhaltung", "新对话"],
  "API reference": ["API-Referenz", "API 参考"],
  "Theme: system": ["Farben: System", "主题：跟随系统"],
  "Theme: light": ["Farben: hell", "主题：浅色"],
  "Theme: dark": ["Farben: dunkel", "主题：深色"],
  "Experts": ["Experten", "专家"],
  "Settings": ["Einstellungen", "设置"],
  "Messages": ["Nachrichten", "消息"],
  "Message": ["Nachricht", "消息"],
  "Message {0}": ["Nachricht an {0}", "发消息给 {0}"],
  "Send": ["Senden", "发送"],
  "Stop": ["Anhalten", "停止"],
  "Enter sends, Shift+Enter begins a new line.": ["Enter sendet, Umschalt+Enter beginnt eine neue Zeile.", "按 Enter 发送，Shift+Enter 换行。"],
  "Close experts": ["Experten schließen", "关闭专家面板"],
  "View": ["Ansicht", "视图"],
  "Token": ["Token", "词元"],
  "Load": ["Last", "负载"],
  "computed this token": ["hat dieses Token berechnet", "计算了该词元"],
  "used in the whole answer, the stronger the more often": ["in der ganzen Antwort benutzt, je kräftiger, desto öfter", "整个回答中的使用情况，颜色越深越频繁"],
  "tokens per 2 seconds, all requests": ["Token je 2 Sekunden, alle Anfragen", "每 2 秒的词元数（所有请求）"],
  "sum, line: even share": ["Summe, Linie: gleicher Anteil", "总和，竖线为平均份额"],
  "As a table": ["Als Tabelle", "以表格显示"],
  "Layer": ["Schicht", "层"],
  "Close settings": ["Einstellungen schließen", "关闭设置"],
  "System message": ["Systemnachricht", "系统消息"],
  "none": ["keine", "无"],
  "Temperature": ["Temperatur", "温度"],
  "Top p": ["Top p", "Top p"],
  "Top k": ["Top k", "Top k"],
  "Min p": ["Min p", "Min p"],
  "Repetition penalty": ["Wiederholungsstrafe", "重复惩罚"],
  "Presence penalty": ["Präsenzstrafe", "存在惩罚"],
  "Most new tokens": ["Höchstens neue Token", "最多新词元数"],
  "what fits": ["was passt", "以上下文为限"],
  "Seed": ["Startwert", "随机种子"],
  "random": ["zufällig", "随机"],
  "API key": ["API-Schlüssel", "API 密钥"],
  "only where the server asks for one": ["nur, wenn der Server einen verlangt", "仅在服务器要求时填写"],
  "Language": ["Sprache", "语言"],
  "Record which experts compute each token": ["Aufzeichnen, welche Experten jedes Token berechnen", "记录计算每个词元的专家"],
  "Empty fields leave the choice to the server. Conversations and settings stay in this browser; the key is forgotten with the tab.": [
    "Leere Felder überlassen die Wahl dem Server. Unterhaltungen und Einstellungen bleiben in diesem Browser; der Schlüssel wird mit dem Tab vergessen.",
    "留空则由服务器决定。对话和设置只保存在本浏览器中；密钥随标签页关闭而清除。"],
  "Reset": ["Zurücksetzen", "重置"],
  "Export conversations": ["Unterhaltungen sichern", "导出对话"],
  "Import": ["Einlesen", "导入"],
  "File with conversations": ["Datei mit Unterhaltungen", "对话文件"],
  "Done": ["Fertig", "完成"],
  "What would you like to know?": ["Was möchten Sie wissen?", "想了解什么？"],
  "Answers are computed by this server. Conversations stay in this browser.": ["Antworten berechnet dieser Server. Unterhaltungen bleiben in diesem Browser.", "回答由本服务器计算，对话只保存在本浏览器中。"],
  "Undo": ["Rückgängig", "撤销"],
  "Delete {0}": ["{0} löschen", "删除 {0}"],
  "“{0}” was deleted.": ["„{0}“ wurde gelöscht.", "已删除“{0}”。"],
  "This browser does not keep the conversation: its storage is full or off.": ["Dieser Browser bewahrt die Unterhaltung nicht auf: Sein Speicher ist voll oder abgeschaltet.", "本浏览器未保存该对话：存储已满或已关闭。"],
  "Recording is off: see Settings.": ["Die Aufzeichnung ist aus: siehe Einstellungen.", "记录已关闭，请查看设置。"],
  "This model has no layers with experts.": ["Dieses Modell hat keine Schichten mit Experten.", "该模型没有专家层。"],
  "{0} tokens": ["{0} Token", "{0} 个词元"],
  "{0} tokens/s": ["{0} Token/s", "{0} 词元/秒"],
  "first token {0} ms": ["erstes Token {0} ms", "首个词元 {0} 毫秒"],
  "waiting": ["wartet", "等待中"],
  "Waiting for the first token": ["Warten auf das erste Token", "正在等待首个词元"],
  "The answer begins.": ["Die Antwort beginnt.", "开始回答。"],
  "Answer: {0}": ["Antwort: {0}", "回答：{0}"],
  "There is no answer.": ["Es gibt keine Antwort.", "没有回答。"],
  "cut at the most new tokens": ["an der Höchstzahl neuer Token beendet", "达到最多新词元数而截断"],
  "stopped": ["angehalten", "已停止"],
  "broken off": ["abgebrochen", "已中断"],
  "The server does not answer.": ["Der Server antwortet nicht.", "服务器没有响应。"],
  "The server answered {0}.": ["Der Server antwortete {0}.", "服务器返回 {0}。"],
  "The connection ended before the answer did.": ["Die Verbindung endete vor der Antwort.", "回答结束前连接已断开。"],
  "The model ended its answer before the first word.": ["Das Modell beendete seine Antwort vor dem ersten Wort.", "模型在输出任何内容前就结束了回答。"],
  "This file holds no conversations of this page.": ["Diese Datei enthält keine Unterhaltungen dieser Seite.", "该文件不包含本页面的对话。"],
  "{0} conversations were added.": ["{0} Unterhaltungen kamen hinzu.", "已添加 {0} 个对话。"],
  "needs an API key": ["verlangt einen API-Schlüssel", "需要 API 密钥"],
  "This server wants an API key: see Settings.": ["Dieser Server verlangt einen API-Schlüssel: siehe Einstellungen.", "该服务器需要 API 密钥，请查看设置。"],
  "loading": ["lädt", "加载中"],
  "no connection": ["keine Verbindung", "无连接"],
  "You": ["Sie", "你"],
  "Answer": ["Antwort", "回答"],
  "Copy code": ["Code kopieren", "复制代码"],
  "Copy message": ["Nachricht kopieren", "复制消息"],
  "Copy answer": ["Antwort kopieren", "复制回答"],
  "Edit and ask again": ["Ändern und erneut fragen", "编辑并重新提问"],
  "Ask again": ["Erneut fragen", "重新提问"],
  "Edit message": ["Nachricht ändern", "编辑消息"],
  "Cancel": ["Abbrechen", "取消"],
  "Regenerate": ["Neu erzeugen", "重新生成"],
  "Earlier answer": ["Frühere Antwort", "上一个回答"],
  "Later answer": ["Spätere Antwort", "下一个回答"],
  "{0} of {1}": ["{0} von {1}", "{0}/{1}"],
  "Show its experts": ["Ihre Experten zeigen", "显示其专家"],
  "Tokens of the answer": ["Token der Antwort", "回答的词元"],
  "line break": ["Zeilenumbruch", "换行"],
  "space": ["Leerzeichen", "空格"],
  "Choose a token of an answer to see which experts computed it.": ["Wählen Sie ein Token einer Antwort, um zu sehen, welche Experten es berechnet haben.", "选择回答中的一个词元，查看由哪些专家计算。"],
  "Token {0} of {1}, {2}: {3} experts in {4} layers.": ["Token {0} von {1}, {2}: {3} Experten in {4} Schichten.", "第 {0}/{1} 个词元 {2}：{4} 层中的 {3} 个专家。"],
  "Token {0} of {1}, {2}: the answer ended with it, so that no expert has computed it.": ["Token {0} von {1}, {2}: Mit ihm endete die Antwort, kein Experte hat es berechnet.", "第 {0}/{1} 个词元 {2}：回答到此结束，因此没有专家计算它。"],
  "Layer {0}, expert {1}: {2} of {3} tokens": ["Schicht {0}, Experte {1}: {2} von {3} Token", "第 {0} 层，专家 {1}：{3} 个词元中的 {2} 个"],
  "layer": ["Schicht", "层"],
  "expert": ["Experte", "专家"],
  "Expert": ["Experte", "专家"],
  "Tokens": ["Token", "词元"],
  "Share": ["Anteil", "份额"],
  "imbalance {0}": ["Ungleichgewicht {0}", "不均衡度 {0}"],
  "idle": ["ruht", "空闲"],
  "Busiest expert over the mean: 1 is even": ["Meistbenutzter Experte durch Mittelwert: 1 ist gleichmäßig", "最忙专家与平均值之比：1 表示均衡"],
  "Nothing was computed in the last {0} minutes.": ["In den letzten {0} Minuten wurde nichts berechnet.", "最近 {0} 分钟内没有计算。"],
  "Expert {0} is the busiest of {1} with {2} % of the choices of the last {3} minutes.": ["Experte {0} ist der meistbenutzte von {1} mit {2} % der Wahlen der letzten {3} Minuten.", "最近 {3} 分钟内，{1} 个专家中专家 {0} 最忙，占 {2} % 的选择。"],
  "{0} min ago": ["vor {0} min", "{0} 分钟前"],
  "now": ["jetzt", "现在"],
  "Expert {0}, {1} s ago: {2} tokens; {3} in all": ["Experte {0}, vor {1} s: {2} Token; {3} insgesamt", "专家 {0}，{1} 秒前：{2} 个词元；共 {3} 个"],
};

let column = -1;

/// The language of a tag like "de-AT", or null.
function known(tag) {
  const name = String(tag).slice(0, 2).toLowerCase();
  return Object.hasOwn(kLanguages, name) ? name : null;
}

/// `wanted` or the browser's first known language; translates what the document holds.
export function speak(wanted) {
  const language = known(wanted) ?? navigator.languages.map(known).find(Boolean) ?? "en";
  column = Object.keys(kLanguages).indexOf(language) - 1;
  document.documentElement.lang = language;
  if (column < 0) return;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    if (Object.hasOwn(kWords, text)) walker.currentNode.data = walker.currentNode.data.replace(text, () => t(text));
  }
  for (const name of ["aria-label", "placeholder", "title"])
    for (const node of document.querySelectorAll(`[${name}]`)) if (Object.hasOwn(kWords, node.getAttribute(name))) node.setAttribute(name, t(node.getAttribute(name)));
}

export function t(text, ...values) {
  const found = column >= 0 && Object.hasOwn(kWords, text) ? kWords[text][column] : text;
  return found.replace(/\{(\d)\}/g, (all, i) => String(values[i] ?? all));
}
