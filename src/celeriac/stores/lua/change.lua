-- A task that a script changes: its record, and what will have to be written.

-- Bytes of events that a record holds before they get a list of their own.
local MOST_LOG = 2000

local ATTEMPTS_KEPT = 20

-- Keys that one command reads or writes at most; Lua's stack has an end.
local MOST_KEYS = 2000

local function task_of(id, text, written)
  if not text then
    return { id = id, row = blank(), known = false, text = written }
  end
  local row = unpacked(text)
  return {
    id = id,
    row = row,
    known = true,
    text = written,
    state = row[STATE],
    name = row[NAME],
    queue = row[QUEUE],
    owner = row[OWNER],
    finished = row[FINISHED],
  }
end

-- What is known of tasks, in the order of their ids and by id. ``row`` is the record, ``known`` whether there is one,
-- ``text`` what is written as Celery's result.
local function open(ids)
  local tasks, tasks_by_id = {}, {}
  for first = 1, #ids, MOST_KEYS do
    local keys, last = {}, math.min(first + MOST_KEYS - 1, #ids)
    local count = last - first + 1
    for index = first, last do
      keys[index - first + 1] = TASK .. ids[index]
      keys[index - first + 1 + count] = META .. ids[index]
    end
    local found = call('MGET', unpack(keys))
    for index = 1, count do
      local task = task_of(ids[first + index - 1], found[index], found[index + count])
      tasks[#tasks + 1], tasks_by_id[task.id] = task, task
    end
  end
  return tasks, tasks_by_id
end

-- What Celery's result says that a task's state is; a text that is not JSON shows a SUCCESS at least.
local function status_of(text)
  local status = string.match(text, '^{"status": "([^"]*)"') or string.match(text, '^{"task_id": ".-", "status": "([^"]*)"')
  if status then
    return status
  end
  return find(text, 'SUCCESS', 1, true) and 'SUCCESS' or 'UNKNOWN'
end

-- Take into account what stock workers have done since: the state as they have written it, or that they deleted it.
local function look(task)
  if task.looked then
    return
  end
  task.looked = true
  local text = task.text
  if not text then
    if READY[task.row[STATE]] then
      task.row, task.known, task.blanked = blank(), false, true
    end
  elseif not task.known or sub(text, 1, #OURS) ~= OURS then
    task.written = status_of(sub(text, 1, 256))
  end
end

-- The state that counts.
local function current(task)
  return task.written or task.row[STATE]
end

local function add_event(task, text)
  local row = task.row
  if row[LISTED] ~= '' then
    task.events = task.events or {}
    task.events[#task.events + 1] = text
    return
  end
  local log = row[LOG]
  row[LOG] = log == '' and text or log .. '\n' .. text
end

-- Move the events out of the record.
local function list_events(task)
  local row, events = task.row, {}
  for line in string.gmatch(row[LOG], '[^\n]+') do
    events[#events + 1] = line
  end
  row[LOG], row[LISTED] = '', '1'
  task.events = events
end

local function add_state_event(task, at, err)
  local row = task.row
  local retries = row[RETRIES]
  add_event(task, '["state",' .. at .. ',' .. quote(row[STATE]) .. ',' .. (retries == '' and '0' or retries) .. ','
    .. quote(row[WORKER]) .. ',' .. quote(err) .. ']')
  if #row[LOG] > MOST_LOG then
    list_events(task)
  end
  task.changed, task.entered = true, true
end

local function begin_attempt(row, at)
  local retries, lines, worker = row[RETRIES], row[ATTEMPTS], row[WORKER]
  local head = '[' .. (retries == '' and '0' or retries) .. ',' .. at .. ',' .. (worker == '' and '""' or quote(worker))
  if lines ~= '' then
    local _, breaks = string.gsub(lines, '\n', '\n')
    if breaks + 2 > ATTEMPTS_KEPT then
      lines = sub(lines, find(lines, '\n', 1, true) + 1)
    end
    head = lines .. '\n' .. head
  end
  row[ATTEMPTS], row[OPEN] = head .. ',"STARTED",null]', tostring(#head)
end

local function update_attempt(row, err)
  local open_until, state = row[OPEN], row[STATE]
  if open_until == '' then
    return
  end
  row[ATTEMPTS] = sub(row[ATTEMPTS], 1, open_until) .. ',' .. quote(state) .. ',' .. quote(err) .. ']'
  if READY[state] or state == 'RETRY' then
    row[OPEN] = ''
  end
end
