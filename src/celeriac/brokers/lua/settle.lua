-- Ends deliveries in any way, and publishes what comes of those that were not void.
--
-- ARGV  4... for each: tag, action ('gone', 'back', 'dead'), due or '', '1' if the delivery counts, reason as JSON,
--       number of publications, and for each of those: queue, step, due or '', envelope
-- Returns the tags that were void.

-- A list that is no list must stop all of this before anything has happened.
local i = 4
while i <= #ARGV do
  local publications = tonumber(ARGV[i + 5])
  i = i + 6
  for _ = 1, publications do
    call('LLEN', list_of(ARGV[i], ARGV[i + 1]))
    i = i + 4
  end
end

local function bury(tag, reason, text, queue)
  local id = call('INCR', PREFIX .. 'celeriac:dead-sequence')
  local name = string.sub(cjson.encode({ queue }), 2, -2)
  local letter = table.concat({ text_of(time()), step_of(tag), name, reason, text }, '\n')
  call('HSET', PREFIX .. 'celeriac:dead', id, letter)
  call('ZADD', PREFIX .. 'celeriac:dead-order', id, id)
  call('ZADD', PREFIX .. 'celeriac:dead:' .. queue, id, id)
end

local function finish(tag, held, action, due, counts, reason)
  release({ tag })
  if action == 'gone' then
    return
  end
  local text, queue = split(held)
  if not text then
    return
  end
  if action == 'dead' then
    bury(tag, reason, text, queue)
    return
  end
  if counts ~= '1' then
    text = uncounted(text)
  end
  if due == '' then
    push('RPUSH', queue, step_of(tag), { text })
  else
    delay(queue, step_of(tag), due, text)
  end
end

local void = {}
i = 4
while i <= #ARGV do
  local tag, publications = ARGV[i], tonumber(ARGV[i + 5])
  local held = call('HGET', UNACKED, tag)
  if held then
    finish(tag, held, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  else
    table.insert(void, tag)
  end
  i = i + 6
  for _ = 1, publications do
    if held then
      publish(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    end
    i = i + 4
  end
end
return void
